// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @dev payer (bits 0 to 159) | deposit (160 to 247) | flags (248 to 255). Zero: no channel.
type PayerSlot is uint256;

/// @dev payee (bits 0 to 159) | settled (160 to 247) | finalized (248). Written at most once per
/// call; `settle` and `close` write nothing else.
type PayeeSlot is uint256;

/// @dev authorizedSigner (bits 0 to 159) | closeRequestedAt (160 to 223). Read only when a flag of
/// the payer's slot says that one of its fields is in force.
type ExtraSlot is uint256;

/// @dev One channel in storage: two slots, and a third for those who use it.
struct ChannelRecord {
    PayerSlot payerSlot;
    PayeeSlot payeeSlot;
    ExtraSlot extraSlot;
}

using ChannelSlots for PayerSlot global;
using ChannelSlots for PayeeSlot global;
using ChannelSlots for ExtraSlot global;

/// @title How a channel is packed
/// @dev Amounts have 88 bits: 309 million tokens of 18 decimals. Whoever packs one has checked
/// that it fits.
library ChannelSlots {
    uint256 private constant AMOUNT_MASK = type(uint88).max;
    uint256 private constant HAS_SIGNER = 1 << 248;
    uint256 private constant CLOSE_REQUESTED = 1 << 249;
    uint256 private constant FINALIZED = 1 << 248;

    function packPayer(address payer_, uint256 deposit_, bool hasSigner_)
        internal
        pure
        returns (PayerSlot)
    {
        uint256 word = uint160(payer_) | (deposit_ << 160);
        return PayerSlot.wrap(hasSigner_ ? word | HAS_SIGNER : word);
    }

    function packPayee(address payee_, uint256 settled_, bool finalized_)
        internal
        pure
        returns (PayeeSlot)
    {
        uint256 word = uint160(payee_) | (settled_ << 160);
        return PayeeSlot.wrap(finalized_ ? word | FINALIZED : word);
    }

    function packExtra(address signer_, uint256 closeRequestedAt_)
        internal
        pure
        returns (ExtraSlot)
    {
        return ExtraSlot.wrap(uint160(signer_) | (closeRequestedAt_ << 160));
    }

    function isEmpty(PayerSlot slot) internal pure returns (bool) {
        return PayerSlot.unwrap(slot) == 0;
    }

    function payer(PayerSlot slot) internal pure returns (address) {
        return address(uint160(PayerSlot.unwrap(slot)));
    }

    function deposit(PayerSlot slot) internal pure returns (uint256) {
        return (PayerSlot.unwrap(slot) >> 160) & AMOUNT_MASK;
    }

    function hasSigner(PayerSlot slot) internal pure returns (bool) {
        return PayerSlot.unwrap(slot) & HAS_SIGNER != 0;
    }

    function closeRequested(PayerSlot slot) internal pure returns (bool) {
        return PayerSlot.unwrap(slot) & CLOSE_REQUESTED != 0;
    }

    function addDeposit(PayerSlot slot, uint256 amount) internal pure returns (PayerSlot) {
        return PayerSlot.wrap(PayerSlot.unwrap(slot) + (amount << 160));
    }

    function withCloseRequested(PayerSlot slot) internal pure returns (PayerSlot) {
        return PayerSlot.wrap(PayerSlot.unwrap(slot) | CLOSE_REQUESTED);
    }

    function withoutCloseRequested(PayerSlot slot) internal pure returns (PayerSlot) {
        return PayerSlot.wrap(PayerSlot.unwrap(slot) & ~CLOSE_REQUESTED);
    }

    function payee(PayeeSlot slot) internal pure returns (address) {
        return address(uint160(PayeeSlot.unwrap(slot)));
    }

    function settled(PayeeSlot slot) internal pure returns (uint256) {
        return (PayeeSlot.unwrap(slot) >> 160) & AMOUNT_MASK;
    }

    function finalized(PayeeSlot slot) internal pure returns (bool) {
        return PayeeSlot.unwrap(slot) & FINALIZED != 0;
    }

    function signer(ExtraSlot slot) internal pure returns (address) {
        return address(uint160(ExtraSlot.unwrap(slot)));
    }

    function closeRequestedAt(ExtraSlot slot) internal pure returns (uint64) {
        return uint64(ExtraSlot.unwrap(slot) >> 160);
    }
}

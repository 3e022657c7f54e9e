// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../interfaces/ISessionEscrow.sol";
import {ChannelRecord, ExtraSlot, PayeeSlot, PayerSlot} from "../libraries/ChannelSlots.sol";

/// @title Where channels are kept, and the views over them
/// @dev Records are never deleted, so that a channel id can never be opened twice.
abstract contract ChannelStore is ISessionEscrow {
    /// @inheritdoc ISessionEscrow
    uint64 public constant CLOSE_GRACE_PERIOD = 15 minutes;

    /// @inheritdoc ISessionEscrow
    uint128 public constant DEPOSIT_MAX = type(uint88).max;

    /// @inheritdoc ISessionEscrow
    address public immutable TOKEN;

    // Written through storage references, which slither does not follow.
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 channelId => ChannelRecord) internal _records;

    constructor(address token) {
        if (token.code.length == 0) revert InvalidToken(token);
        TOKEN = token;
    }

    /// @inheritdoc ISessionEscrow
    function computeChannelId(
        address payer,
        address payee,
        address token,
        bytes32 salt,
        address authorizedSigner
    ) public view returns (bytes32) {
        return keccak256(
            abi.encode(payer, payee, token, salt, authorizedSigner, address(this), block.chainid)
        );
    }

    /// @inheritdoc ISessionEscrow
    function getChannel(bytes32 channelId) public view returns (Channel memory channel) {
        ChannelRecord storage record = _records[channelId];
        PayerSlot payerSlot = record.payerSlot;
        if (payerSlot.isEmpty()) return channel;
        PayeeSlot payeeSlot = record.payeeSlot;
        ExtraSlot extraSlot = record.extraSlot;
        channel.finalized = payeeSlot.finalized();
        if (payerSlot.closeRequested()) channel.closeRequestedAt = extraSlot.closeRequestedAt();
        channel.payer = payerSlot.payer();
        channel.payee = payeeSlot.payee();
        channel.token = TOKEN;
        channel.authorizedSigner = extraSlot.signer();
        channel.deposit = uint128(payerSlot.deposit());
        channel.settled = uint128(payeeSlot.settled());
    }

    /// @inheritdoc ISessionEscrow
    function getChannels(bytes32[] calldata channelIds)
        external
        view
        returns (Channel[] memory channels)
    {
        channels = new Channel[](channelIds.length);
        for (uint256 i = 0; i < channelIds.length; ++i) {
            channels[i] = getChannel(channelIds[i]);
        }
    }

    /// @dev Why nobody, or not this caller as payee, may move the channel; zero if nothing forbids.
    function _refusal(PayerSlot payerSlot, PayeeSlot payeeSlot, address payee)
        internal
        pure
        returns (bytes4)
    {
        if (payerSlot.isEmpty()) return ChannelNotFound.selector;
        if (payeeSlot.finalized()) return ChannelFinalized.selector;
        if (payeeSlot.payee() != payee) return NotPayee.selector;
        return 0;
    }

    /// @dev The two slots of a channel that exists and has not ended.
    function _requireOpen(ChannelRecord storage record)
        internal
        view
        returns (PayerSlot payerSlot, PayeeSlot payeeSlot)
    {
        payerSlot = record.payerSlot;
        payeeSlot = record.payeeSlot;
        if (payerSlot.isEmpty()) revert ChannelNotFound();
        if (payeeSlot.finalized()) revert ChannelFinalized();
    }

    /// @dev Who signs the channel's vouchers.
    function _signerOf(ChannelRecord storage record, PayerSlot payerSlot)
        internal
        view
        returns (address)
    {
        return payerSlot.hasSigner() ? record.extraSlot.signer() : payerSlot.payer();
    }
}

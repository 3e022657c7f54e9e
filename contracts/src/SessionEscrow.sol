// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {ChannelStore} from "./base/ChannelStore.sol";
import {VoucherVerifier} from "./base/VoucherVerifier.sol";
import {IPermit2} from "./interfaces/IPermit2.sol";
import {IReceiveWithAuthorization} from "./interfaces/IReceiveWithAuthorization.sol";
import {ISessionEscrow} from "./interfaces/ISessionEscrow.sol";
import {CappedCall} from "./libraries/CappedCall.sol";
import {ChannelRecord, ChannelSlots, PayeeSlot, PayerSlot} from "./libraries/ChannelSlots.sol";

/// @title One-way payment channels in one ERC-20 token
/// @notice See `ISessionEscrow`, which is the manual.
/// @dev Every entry point is guarded against reentrancy and follows checks, effects, interactions.
/// The two functions that end in an amount owed to a payee, `_settle` and `_close`, return a
/// refusal instead of reverting: a single call turns it into a revert, a batch into an event, and
/// so both obey the same rules.
contract SessionEscrow is ISessionEscrow, ChannelStore, VoucherVerifier, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc ISessionEscrow
    address public constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;

    /// @inheritdoc ISessionEscrow
    uint256 public constant REFUND_GAS_CAP = 300_000;

    bytes32 private constant OPEN_WITNESS_TYPEHASH =
        keccak256("ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)");
    string private constant OPEN_WITNESS_TYPE =
        "ChannelOpenWitness witness)ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)TokenPermissions(address token,uint256 amount)";
    bytes32 private constant TOP_UP_WITNESS_TYPEHASH =
        keccak256("ChannelTopUpWitness(bytes32 channelId)");
    string private constant TOP_UP_WITNESS_TYPE =
        "ChannelTopUpWitness witness)ChannelTopUpWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)";

    /// @inheritdoc ISessionEscrow
    mapping(address payer => uint256) public claimable;

    /// @dev Keys: keccak256(payee, channelId, nonce) of three words, keccak256(payee, nonce) of two.
    mapping(bytes32 key => bool) private _usedNonces;

    constructor(address token) ChannelStore(token) {}

    /*//////////////////////////////////////////////////////////////////////////
                                       OPEN
    //////////////////////////////////////////////////////////////////////////*/

    /// @inheritdoc ISessionEscrow
    function open(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external nonReentrant returns (bytes32 channelId) {
        channelId = _open(msg.sender, payee, token, deposit, salt, authorizedSigner);
        _pull(msg.sender, deposit);
    }

    /// @inheritdoc ISessionEscrow
    function openWithAuthorization(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner,
        address from,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant returns (bytes32 channelId) {
        bytes32 expected = keccak256(abi.encode(from, payee, token, salt, authorizedSigner));
        if (nonce != expected) revert NonceMismatch();
        channelId = _open(from, payee, token, deposit, salt, authorizedSigner);
        _pullWithAuthorization(from, deposit, validAfter, validBefore, nonce, signature);
    }

    /// @inheritdoc ISessionEscrow
    function openWithPermit2(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner,
        address from,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) external nonReentrant returns (bytes32 channelId) {
        channelId = _open(from, payee, token, deposit, salt, authorizedSigner);
        bytes32 witness =
            keccak256(abi.encode(OPEN_WITNESS_TYPEHASH, payee, salt, authorizedSigner));
        _pullWithPermit2(from, deposit, nonce, deadline, witness, OPEN_WITNESS_TYPE, signature);
    }

    /*//////////////////////////////////////////////////////////////////////////
                                      TOP UP
    //////////////////////////////////////////////////////////////////////////*/

    /// @inheritdoc ISessionEscrow
    function topUp(bytes32 channelId, uint128 additionalDeposit) external nonReentrant {
        ChannelRecord storage record = _records[channelId];
        (PayerSlot payerSlot,) = _requireOpen(record);
        if (msg.sender != payerSlot.payer()) revert NotPayer();
        _topUp(channelId, additionalDeposit);
        _pull(msg.sender, additionalDeposit);
    }

    /// @inheritdoc ISessionEscrow
    function topUpWithAuthorization(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant {
        bytes32 expected = keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt));
        if (nonce != expected) revert NonceMismatch();
        _topUp(channelId, additionalDeposit);
        _pullWithAuthorization(from, additionalDeposit, validAfter, validBefore, nonce, signature);
    }

    /// @inheritdoc ISessionEscrow
    function topUpWithPermit2(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) external nonReentrant {
        _topUp(channelId, additionalDeposit);
        bytes32 witness = keccak256(abi.encode(TOP_UP_WITNESS_TYPEHASH, channelId));
        _pullWithPermit2(
            from, additionalDeposit, nonce, deadline, witness, TOP_UP_WITNESS_TYPE, signature
        );
    }

    /*//////////////////////////////////////////////////////////////////////////
                                SETTLE AND CLOSE
    //////////////////////////////////////////////////////////////////////////*/

    /// @inheritdoc ISessionEscrow
    function settle(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature)
        external
        nonReentrant
    {
        _settleOne(msg.sender, channelId, cumulativeAmount, signature);
    }

    /// @inheritdoc ISessionEscrow
    function settleWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external nonReentrant {
        address payee = _authorize(
            SETTLE_TYPEHASH, channelId, cumulativeAmount, nonce, deadline, payeeSignature
        );
        _settleOne(payee, channelId, cumulativeAmount, voucherSignature);
    }

    /// @inheritdoc ISessionEscrow
    function settleBatch(BatchEntry[] calldata entries)
        external
        nonReentrant
        returns (uint256 paid)
    {
        return _settleBatch(msg.sender, entries);
    }

    /// @inheritdoc ISessionEscrow
    function settleBatchWithAuthorization(
        address payee,
        BatchEntry[] calldata entries,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external nonReentrant returns (uint256 paid) {
        _authorizeBatch(SETTLE_BATCH_TYPEHASH, payee, entries, nonce, deadline, payeeSignature);
        return _settleBatch(payee, entries);
    }

    /// @inheritdoc ISessionEscrow
    function close(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature)
        external
        nonReentrant
    {
        _closeOne(msg.sender, channelId, cumulativeAmount, signature);
    }

    /// @inheritdoc ISessionEscrow
    function closeWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external nonReentrant {
        address payee = _authorize(
            CLOSE_TYPEHASH, channelId, cumulativeAmount, nonce, deadline, payeeSignature
        );
        _closeOne(payee, channelId, cumulativeAmount, voucherSignature);
    }

    /// @inheritdoc ISessionEscrow
    function closeBatch(BatchEntry[] calldata entries)
        external
        nonReentrant
        returns (uint256 paid)
    {
        return _closeBatch(msg.sender, entries);
    }

    /// @inheritdoc ISessionEscrow
    function closeBatchWithAuthorization(
        address payee,
        BatchEntry[] calldata entries,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external nonReentrant returns (uint256 paid) {
        _authorizeBatch(CLOSE_BATCH_TYPEHASH, payee, entries, nonce, deadline, payeeSignature);
        return _closeBatch(payee, entries);
    }

    /*//////////////////////////////////////////////////////////////////////////
                                 THE PAYER'S EXIT
    //////////////////////////////////////////////////////////////////////////*/

    /// @inheritdoc ISessionEscrow
    function requestClose(bytes32 channelId) external nonReentrant {
        ChannelRecord storage record = _records[channelId];
        (PayerSlot payerSlot, PayeeSlot payeeSlot) = _requireOpen(record);
        if (msg.sender != payerSlot.payer()) revert NotPayer();
        if (payerSlot.closeRequested()) return;

        record.payerSlot = payerSlot.withCloseRequested();
        record.extraSlot = ChannelSlots.packExtra(record.extraSlot.signer(), block.timestamp);
        emit CloseRequested(
            channelId, msg.sender, payeeSlot.payee(), block.timestamp + CLOSE_GRACE_PERIOD
        );
    }

    /// @inheritdoc ISessionEscrow
    function withdraw(bytes32 channelId) external nonReentrant {
        ChannelRecord storage record = _records[channelId];
        (PayerSlot payerSlot, PayeeSlot payeeSlot) = _requireOpen(record);
        if (msg.sender != payerSlot.payer()) revert NotPayer();
        if (!payerSlot.closeRequested()) revert CloseNotReady();
        uint256 readyAt = record.extraSlot.closeRequestedAt() + CLOSE_GRACE_PERIOD;
        // A block's time can be moved by seconds; the grace period is a quarter of an hour.
        // slither-disable-next-line timestamp
        if (block.timestamp < readyAt) revert CloseNotReady();

        uint256 settled = payeeSlot.settled();
        uint256 refund = payerSlot.deposit() - settled;
        record.payeeSlot = ChannelSlots.packPayee(payeeSlot.payee(), settled, true);
        emit ChannelClosed(channelId, msg.sender, payeeSlot.payee(), settled, refund);
        if (refund != 0) IERC20(TOKEN).safeTransfer(msg.sender, refund);
    }

    /// @inheritdoc ISessionEscrow
    function claimRefund(address payer) external nonReentrant {
        uint256 amount = claimable[payer];
        if (amount == 0) revert NothingToClaim();
        claimable[payer] = 0;
        emit RefundClaimed(payer, amount);
        IERC20(TOKEN).safeTransfer(payer, amount);
    }

    /*//////////////////////////////////////////////////////////////////////////
                                       VIEWS
    //////////////////////////////////////////////////////////////////////////*/

    /// @inheritdoc ISessionEscrow
    function isNonceUsed(address payee, bytes32 channelId, uint256 nonce)
        external
        view
        returns (bool)
    {
        return _usedNonces[keccak256(abi.encode(payee, channelId, nonce))];
    }

    /// @inheritdoc ISessionEscrow
    function isBatchNonceUsed(address payee, uint256 nonce) external view returns (bool) {
        return _usedNonces[keccak256(abi.encode(payee, nonce))];
    }

    /*//////////////////////////////////////////////////////////////////////////
                                 CHECKS AND EFFECTS
    //////////////////////////////////////////////////////////////////////////*/

    /// @dev Records the channel; the caller then pulls the deposit or the whole call reverts.
    function _open(
        address payer,
        address payee,
        address token,
        uint256 deposit,
        bytes32 salt,
        address authorizedSigner
    ) private returns (bytes32 channelId) {
        if (token != TOKEN) revert InvalidToken(token);
        if (payee == address(0)) revert InvalidPayee();
        if (deposit == 0) revert ZeroDeposit();
        if (deposit > DEPOSIT_MAX) revert DepositOverflow();
        channelId = computeChannelId(payer, payee, token, salt, authorizedSigner);
        ChannelRecord storage record = _records[channelId];
        if (!record.payerSlot.isEmpty()) revert ChannelAlreadyExists();

        bool hasSigner = authorizedSigner != address(0);
        record.payerSlot = ChannelSlots.packPayer(payer, deposit, hasSigner);
        record.payeeSlot = ChannelSlots.packPayee(payee, 0, false);
        if (hasSigner) record.extraSlot = ChannelSlots.packExtra(authorizedSigner, 0);
        emit ChannelOpened(channelId, payer, payee, token, authorizedSigner, salt, deposit);
    }

    /// @dev Raises the deposit; the caller then pulls the amount or the whole call reverts. Only
    /// the payer's own transaction cancels a pending close: what the payer only signed may have
    /// been signed before it asked to leave, and kept.
    function _topUp(bytes32 channelId, uint256 additionalDeposit) private {
        ChannelRecord storage record = _records[channelId];
        (PayerSlot payerSlot, PayeeSlot payeeSlot) = _requireOpen(record);
        if (additionalDeposit == 0) revert ZeroDeposit();
        uint256 newDeposit = payerSlot.deposit() + additionalDeposit;
        if (newDeposit > DEPOSIT_MAX) revert DepositOverflow();

        address payer = payerSlot.payer();
        address payee = payeeSlot.payee();
        payerSlot = payerSlot.addDeposit(additionalDeposit);
        if (msg.sender == payer && payerSlot.closeRequested()) {
            payerSlot = payerSlot.withoutCloseRequested();
            emit CloseRequestCancelled(channelId, payer, payee);
        }
        record.payerSlot = payerSlot;
        emit TopUp(channelId, payer, payee, additionalDeposit, newDeposit);
    }

    /// @dev Raises `settled`; the caller then owes `payee` the `delta`.
    function _settle(
        address payee,
        bytes32 channelId,
        uint256 cumulativeAmount,
        bytes calldata signature
    ) private returns (bytes4 refusal, uint256 delta) {
        ChannelRecord storage record = _records[channelId];
        PayerSlot payerSlot = record.payerSlot;
        PayeeSlot payeeSlot = record.payeeSlot;
        refusal = _refusal(payerSlot, payeeSlot, payee);
        if (refusal != 0) return (refusal, 0);
        uint256 settled = payeeSlot.settled();
        if (cumulativeAmount <= settled) return (AmountNotIncreasing.selector, 0);
        if (cumulativeAmount > payerSlot.deposit()) return (AmountExceedsDeposit.selector, 0);
        bytes32 digest = _voucherDigest(channelId, cumulativeAmount);
        if (!_isSignedBy(_signerOf(record, payerSlot), digest, signature)) {
            return (InvalidSignature.selector, 0);
        }

        unchecked {
            delta = cumulativeAmount - settled; // it is increasing
        }
        record.payeeSlot = ChannelSlots.packPayee(payee, cumulativeAmount, false);
        emit Settled(channelId, payerSlot.payer(), payee, cumulativeAmount, delta, cumulativeAmount);
    }

    /// @dev Ends the channel; the caller then owes `payee` the `delta` and `payer` the `refund`.
    function _close(
        address payee,
        bytes32 channelId,
        uint256 cumulativeAmount,
        bytes calldata signature
    ) private returns (bytes4 refusal, uint256 delta, address payer, uint256 refund) {
        ChannelRecord storage record = _records[channelId];
        PayerSlot payerSlot = record.payerSlot;
        PayeeSlot payeeSlot = record.payeeSlot;
        refusal = _refusal(payerSlot, payeeSlot, payee);
        if (refusal != 0) return (refusal, 0, address(0), 0);
        uint256 settled = payeeSlot.settled();
        uint256 deposit = payerSlot.deposit();
        if (cumulativeAmount > settled) {
            if (cumulativeAmount > deposit) {
                return (AmountExceedsDeposit.selector, 0, address(0), 0);
            }
            bytes32 digest = _voucherDigest(channelId, cumulativeAmount);
            if (!_isSignedBy(_signerOf(record, payerSlot), digest, signature)) {
                return (InvalidSignature.selector, 0, address(0), 0);
            }
            unchecked {
                delta = cumulativeAmount - settled; // it is increasing
            }
            settled = cumulativeAmount;
        }

        payer = payerSlot.payer();
        unchecked {
            refund = deposit - settled; // settled never exceeds the deposit
        }
        record.payeeSlot = ChannelSlots.packPayee(payee, settled, true);
        emit ChannelClosed(channelId, payer, payee, settled, refund);
    }

    /// @dev Takes the payee's signature for one channel, once.
    function _authorize(
        bytes32 typehash,
        bytes32 channelId,
        uint256 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) private returns (address payee) {
        // slither-disable-next-line timestamp
        if (block.timestamp > deadline) revert AuthorizationExpired();
        payee = _records[channelId].payeeSlot.payee();
        if (payee == address(0)) revert ChannelNotFound();
        bytes32 structHash =
            keccak256(abi.encode(typehash, channelId, cumulativeAmount, nonce, deadline));
        _useNonce(keccak256(abi.encode(payee, channelId, nonce)), payee, structHash, payeeSignature);
    }

    /// @dev Takes the payee's signature for a batch, once.
    function _authorizeBatch(
        bytes32 typehash,
        address payee,
        BatchEntry[] calldata entries,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) private {
        // slither-disable-next-line timestamp
        if (block.timestamp > deadline) revert AuthorizationExpired();
        bytes32 structHash =
            keccak256(abi.encode(typehash, payee, _hashEntries(entries), nonce, deadline));
        _useNonce(keccak256(abi.encode(payee, nonce)), payee, structHash, payeeSignature);
    }

    function _useNonce(
        bytes32 key,
        address payee,
        bytes32 structHash,
        bytes calldata payeeSignature
    ) private {
        if (_usedNonces[key]) revert NonceAlreadyUsed();
        if (!_isSignedBy(payee, _hashTypedDataV4(structHash), payeeSignature)) {
            revert InvalidSignature();
        }
        _usedNonces[key] = true;
    }

    /*//////////////////////////////////////////////////////////////////////////
                                   INTERACTIONS
    //////////////////////////////////////////////////////////////////////////*/

    function _settleOne(
        address payee,
        bytes32 channelId,
        uint256 cumulativeAmount,
        bytes calldata signature
    ) private {
        (bytes4 refusal, uint256 delta) = _settle(payee, channelId, cumulativeAmount, signature);
        if (refusal != 0) _revertWith(refusal);
        IERC20(TOKEN).safeTransfer(payee, delta);
    }

    function _closeOne(
        address payee,
        bytes32 channelId,
        uint256 cumulativeAmount,
        bytes calldata signature
    ) private {
        (bytes4 refusal, uint256 delta, address payer, uint256 refund) =
            _close(payee, channelId, cumulativeAmount, signature);
        if (refusal != 0) _revertWith(refusal);
        if (refund != 0) _refund(channelId, payer, refund);
        if (delta != 0) IERC20(TOKEN).safeTransfer(payee, delta);
    }

    function _settleBatch(address payee, BatchEntry[] calldata entries)
        private
        returns (uint256 paid)
    {
        for (uint256 i = 0; i < entries.length; ++i) {
            BatchEntry calldata entry = entries[i];
            bytes32 channelId = entry.channelId;
            (bytes4 refusal, uint256 delta) =
                _settle(payee, channelId, entry.cumulativeAmount, entry.signature);
            if (refusal != 0) emit BatchEntrySkipped(channelId, refusal);
            unchecked {
                paid += delta; // a batch would need 2**168 entries to overflow
            }
        }
        if (paid != 0) IERC20(TOKEN).safeTransfer(payee, paid);
    }

    function _closeBatch(address payee, BatchEntry[] calldata entries)
        private
        returns (uint256 paid)
    {
        for (uint256 i = 0; i < entries.length; ++i) {
            BatchEntry calldata entry = entries[i];
            bytes32 channelId = entry.channelId;
            (bytes4 refusal, uint256 delta, address payer, uint256 refund) =
                _close(payee, channelId, entry.cumulativeAmount, entry.signature);
            if (refusal != 0) emit BatchEntrySkipped(channelId, refusal);
            unchecked {
                paid += delta; // a batch would need 2**168 entries to overflow
            }
            if (refund != 0) _refund(channelId, payer, refund);
        }
        if (paid != 0) IERC20(TOKEN).safeTransfer(payee, paid);
    }

    /// @dev Pays a refund, or holds it when the token refuses, so that the payee is never stopped.
    function _refund(bytes32 channelId, address payer, uint256 amount) private {
        if (CappedCall.tryTransfer(TOKEN, payer, amount, REFUND_GAS_CAP)) return;
        claimable[payer] += amount;
        emit RefundHeld(channelId, payer, amount);
    }

    function _pull(address from, uint256 amount) private {
        uint256 balance = _balance();
        // Every caller passes msg.sender.
        // slither-disable-next-line arbitrary-send-erc20
        IERC20(TOKEN).safeTransferFrom(from, address(this), amount);
        _requireReceived(balance, amount);
    }

    function _pullWithAuthorization(
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) private {
        uint256 balance = _balance();
        IReceiveWithAuthorization(TOKEN)
            .receiveWithAuthorization(
                from, address(this), amount, validAfter, validBefore, nonce, signature
            );
        _requireReceived(balance, amount);
    }

    function _pullWithPermit2(
        address from,
        uint256 amount,
        uint256 nonce,
        uint256 deadline,
        bytes32 witness,
        string memory witnessType,
        bytes calldata signature
    ) private {
        uint256 balance = _balance();
        IPermit2(PERMIT2)
            .permitWitnessTransferFrom(
                IPermit2.PermitTransferFrom({
                permitted: IPermit2.TokenPermissions({token: TOKEN, amount: amount}),
                nonce: nonce,
                deadline: deadline
            }),
                IPermit2.SignatureTransferDetails({to: address(this), requestedAmount: amount}),
                from,
                witness,
                witnessType,
                signature
            );
        _requireReceived(balance, amount);
    }

    function _balance() private view returns (uint256) {
        return IERC20(TOKEN).balanceOf(address(this));
    }

    function _requireReceived(uint256 balanceBefore, uint256 amount) private view {
        uint256 balanceAfter = _balance();
        if (balanceAfter != balanceBefore + amount) {
            uint256 received = balanceAfter > balanceBefore ? balanceAfter - balanceBefore : 0;
            revert DepositNotReceived(amount, received);
        }
    }

    function _revertWith(bytes4 refusal) private pure {
        assembly ("memory-safe") {
            mstore(0, refusal)
            revert(0, 4)
        }
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Session escrow: one-way payment channels in one ERC-20 token
/// @notice A payer deposits once; a payee is paid by cumulative vouchers, each an EIP-712 message
/// that says how much has been promised in all. Nobody owns this contract, nobody can pause or
/// upgrade it, and it takes no fee. One escrow serves one token (`TOKEN`), so that a token can only
/// hurt its own channels.
///
/// This interface is the manual. Amounts are in base units of the token (the token's decimals),
/// times in Unix seconds. "Refuses" means a revert with the error named; the errors of a function
/// are listed in the order in which they are checked.
///
/// Signatures: 65 bytes `r ‖ s ‖ v` with `v` 27 or 28 and `s` in the lower half, recovered first;
/// if that does not give the expected signer and the signer has code, ERC-1271 with
/// `ERC1271_GAS_CAP` gas. A delegated EOA (EIP-7702) can therefore always sign with its own key.
interface ISessionEscrow {
    /*//////////////////////////////////////////////////////////////////////////
                                       VALUES
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice A channel as views return it; all zero when it never existed.
    /// @param finalized Ended for ever; nothing moves any more.
    /// @param closeRequestedAt When the payer asked for the rest of the deposit; 0 if not pending.
    /// @param payer Who deposited and who is refunded.
    /// @param payee Who is paid.
    /// @param token The escrow's token.
    /// @param authorizedSigner Who signs vouchers; zero means the payer does.
    /// @param deposit All ever deposited.
    /// @param settled All ever paid to the payee; never above `deposit`.
    struct Channel {
        bool finalized;
        uint64 closeRequestedAt;
        address payer;
        address payee;
        address token;
        address authorizedSigner;
        uint128 deposit;
        uint128 settled;
    }

    /// @notice One voucher to settle or close in a batch.
    /// @param channelId The channel.
    /// @param cumulativeAmount The voucher's running total.
    /// @param signature The voucher's signature; empty where `close` accepts that.
    struct BatchEntry {
        bytes32 channelId;
        uint128 cumulativeAmount;
        bytes signature;
    }

    /*//////////////////////////////////////////////////////////////////////////
                                       ERRORS
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice A channel with these terms exists or existed.
    error ChannelAlreadyExists();
    /// @notice No channel has this id.
    error ChannelNotFound();
    /// @notice The channel has ended.
    error ChannelFinalized();
    /// @notice Only the channel's payee may do this.
    error NotPayee();
    /// @notice Only the channel's payer may do this.
    error NotPayer();
    /// @notice The voucher does not exceed what has been settled.
    error AmountNotIncreasing();
    /// @notice The voucher promises more than the deposit.
    error AmountExceedsDeposit();
    /// @notice The signature is malformed, malleable, or not by the expected signer.
    error InvalidSignature();
    /// @notice The EIP-3009 nonce is not the one derived from the terms.
    error NonceMismatch();
    /// @notice The payee's authorization was used before.
    error NonceAlreadyUsed();
    /// @notice The payee's authorization is past its deadline.
    error AuthorizationExpired();
    /// @notice No close is pending, or its grace period has not passed.
    error CloseNotReady();
    /// @notice A deposit must not be zero.
    error ZeroDeposit();
    /// @notice The channel's deposit would exceed `DEPOSIT_MAX`.
    error DepositOverflow();
    /// @notice The payee must not be the zero address.
    error InvalidPayee();
    /// @notice This escrow serves another token, or the token has no code.
    error InvalidToken(address token);
    /// @notice The token moved another amount than asked (fee on transfer, rebase).
    error DepositNotReceived(uint256 expected, uint256 received);
    /// @notice Too little gas to give a signer wallet or a refund its full allowance, so that a
    /// refusal would prove nothing. Call again with more gas.
    error InsufficientGas();
    /// @notice Nothing is held for this payer.
    error NothingToClaim();

    /*//////////////////////////////////////////////////////////////////////////
                                       EVENTS
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice A channel was opened with `deposit`.
    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        address authorizedSigner,
        bytes32 salt,
        uint256 deposit
    );
    /// @notice The deposit rose by `additionalDeposit` to `newDeposit`.
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 additionalDeposit,
        uint256 newDeposit
    );
    /// @notice The payee was paid `deltaPaid`; `newSettled` equals `cumulativeAmount`.
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 cumulativeAmount,
        uint256 deltaPaid,
        uint256 newSettled
    );
    /// @notice The payer asked for the rest; `withdraw` opens at `closeGraceEnd`.
    event CloseRequested(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 closeGraceEnd
    );
    /// @notice A top-up that the payer sent cancelled the pending close.
    event CloseRequestCancelled(
        bytes32 indexed channelId, address indexed payer, address indexed payee
    );
    /// @notice The channel ended. `settledToPayee` is all it ever paid, `refundedToPayer` the rest.
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 settledToPayee,
        uint256 refundedToPayer
    );
    /// @notice A batch left this entry out; `reason` is the selector of the error that a single
    /// call would have reverted with.
    event BatchEntrySkipped(bytes32 indexed channelId, bytes4 reason);
    /// @notice The token refused the refund; it waits in `claimable` for the payer.
    event RefundHeld(bytes32 indexed channelId, address indexed payer, uint256 amount);
    /// @notice A held refund was paid.
    event RefundClaimed(address indexed payer, uint256 amount);

    /*//////////////////////////////////////////////////////////////////////////
                                   PAYER FUNCTIONS
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice Opens a channel from the caller to `payee` and deposits `deposit`.
    ///
    /// Requirements, in this order:
    /// - `token` is `TOKEN` (InvalidToken), `payee` is not zero (InvalidPayee)
    /// - `deposit` is not zero (ZeroDeposit) and at most `DEPOSIT_MAX` (DepositOverflow)
    /// - the same terms were never used before, closed channels included (ChannelAlreadyExists)
    /// - the caller has approved this contract for `deposit`, and the token delivers exactly that
    ///   (DepositNotReceived)
    ///
    /// @param payee Who will be paid.
    /// @param token The escrow's token, repeated so that the terms are explicit.
    /// @param deposit Amount to deposit.
    /// @param salt Any 32 bytes; fresh for each channel.
    /// @param authorizedSigner Who signs vouchers; zero for the caller itself.
    /// @return channelId The id derived from the terms; see `computeChannelId`.
    function open(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external returns (bytes32 channelId);

    /// @notice Raises the deposit of the caller's channel and cancels a pending close.
    ///
    /// Requirements, in this order: the channel exists (ChannelNotFound), is not finalized
    /// (ChannelFinalized), the caller is its payer (NotPayer), the amount is not zero (ZeroDeposit)
    /// and the new deposit at most `DEPOSIT_MAX` (DepositOverflow), and the token delivers exactly
    /// the amount (DepositNotReceived).
    function topUp(bytes32 channelId, uint128 additionalDeposit) external;

    /// @notice Starts the grace period after which the caller may `withdraw`. The payee can still
    /// settle and close. Asking again changes nothing: the clock is not restarted.
    ///
    /// Requirements, in this order: the channel exists (ChannelNotFound), is not finalized
    /// (ChannelFinalized), the caller is its payer (NotPayer).
    function requestClose(bytes32 channelId) external;

    /// @notice Ends the channel and pays the caller everything not settled.
    ///
    /// Requirements, in this order: the channel exists (ChannelNotFound), is not finalized
    /// (ChannelFinalized), the caller is its payer (NotPayer), a close is pending and
    /// `CLOSE_GRACE_PERIOD` has passed, the last second included (CloseNotReady).
    function withdraw(bytes32 channelId) external;

    /// @notice Pays a payer all refunds the token once refused. Anyone may call; the money only
    /// ever goes to the payer.
    ///
    /// Requirements: something is held (NothingToClaim) and the token now accepts the transfer.
    function claimRefund(address payer) external;

    /*//////////////////////////////////////////////////////////////////////////
                                   PAYEE FUNCTIONS
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice Pays the caller what a voucher adds to what was settled. The channel stays open.
    ///
    /// Requirements, in this order: the channel exists (ChannelNotFound), is not finalized
    /// (ChannelFinalized), the caller is its payee (NotPayee), the voucher is above what was settled
    /// (AmountNotIncreasing), at most the deposit (AmountExceedsDeposit), and signed by the
    /// channel's signer (InvalidSignature; InsufficientGas when a wallet could not be asked).
    function settle(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature) external;

    /// @notice Settles with a voucher, ends the channel and refunds the payer, all at once. With a
    /// cumulative amount at or below what was settled nothing more is paid and no signature is
    /// needed. A refund the token refuses is held for the payer and does not stop the payee.
    ///
    /// Requirements, in this order: the channel exists (ChannelNotFound), is not finalized
    /// (ChannelFinalized), the caller is its payee (NotPayee); above what was settled also: at most
    /// the deposit (AmountExceedsDeposit), signed by the channel's signer (InvalidSignature).
    function close(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature) external;

    /// @notice `settle` for many of the caller's channels, paid in one transfer. An entry that
    /// `settle` would refuse is left out with `BatchEntrySkipped`; the others are paid.
    /// @return paid What the caller received in all.
    function settleBatch(BatchEntry[] calldata entries) external returns (uint256 paid);

    /// @notice `close` for many of the caller's channels: one transfer to the caller, a refund to
    /// each payer. An entry that `close` would refuse is left out with `BatchEntrySkipped`.
    /// @return paid What the caller received in all.
    function closeBatch(BatchEntry[] calldata entries) external returns (uint256 paid);

    /*//////////////////////////////////////////////////////////////////////////
                          RELAYED FUNCTIONS: ANYONE MAY SUBMIT
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice `open` for `from`, funded by its EIP-3009 authorization to this contract.
    ///
    /// Whoever submits it, the outcome is the one `from` signed: the nonce binds payee, token, salt
    /// and signer, the authorization the amount. A submitter who was overtaken gets
    /// ChannelAlreadyExists and finds the intended channel in place.
    ///
    /// Requirements: as `open`; before the token is called the nonce must be
    /// `keccak256(abi.encode(from, payee, token, salt, authorizedSigner))` (NonceMismatch). The
    /// token checks signature, time window and that the nonce is unused.
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
    ) external returns (bytes32 channelId);

    /// @notice `open` for `from`, funded through Permit2 with the channel's terms as witness.
    ///
    /// Requirements: as `open`. Permit2 checks signature, deadline, nonce and that the permitted
    /// amount is `deposit` of `TOKEN` with witness
    /// `ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)`.
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
    ) external returns (bytes32 channelId);

    /// @notice Raises a deposit with the EIP-3009 authorization of `from`, who need not be the
    /// payer. Refunds still go to the payer. A pending close is cancelled only when the payer sends
    /// the call: otherwise anyone could hold the payer's exit hostage for one base unit, or with an
    /// authorization that the payer signed before it asked to leave.
    ///
    /// Requirements, in this order: the nonce is
    /// `keccak256(abi.encode(channelId, additionalDeposit, from, topUpSalt))` (NonceMismatch), the
    /// channel exists (ChannelNotFound), is not finalized (ChannelFinalized), the amount is not
    /// zero (ZeroDeposit), the new deposit at most `DEPOSIT_MAX` (DepositOverflow), and exactly the
    /// amount arrives (DepositNotReceived).
    function topUpWithAuthorization(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        bytes32 topUpSalt,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;

    /// @notice As `topUpWithAuthorization`, funded through Permit2 with witness
    /// `ChannelTopUpWitness(bytes32 channelId)`.
    function topUpWithPermit2(
        bytes32 channelId,
        uint128 additionalDeposit,
        address from,
        uint256 nonce,
        uint256 deadline,
        bytes calldata signature
    ) external;

    /// @notice `settle`, authorized by the payee's signature over
    /// `SettleAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)`.
    ///
    /// Requirements, in this order: not past `deadline`, the second itself is valid
    /// (AuthorizationExpired), the channel exists (ChannelNotFound), (payee, channel, nonce) is
    /// unused here and in `closeWithAuthorization` (NonceAlreadyUsed), the payee signed
    /// (InvalidSignature); then as `settle`.
    function settleWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external;

    /// @notice `close`, authorized by the payee's signature over
    /// `CloseAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)`.
    /// Requirements as `settleWithAuthorization`, then as `close`.
    function closeWithAuthorization(
        bytes32 channelId,
        uint128 cumulativeAmount,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature,
        bytes calldata voucherSignature
    ) external;

    /// @notice `settleBatch` for `payee`, authorized by its signature over
    /// `SettleBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)`
    /// with `BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)`.
    ///
    /// Requirements, in this order: not past `deadline` (AuthorizationExpired), (payee, nonce)
    /// unused here and in `closeBatchWithAuthorization` (NonceAlreadyUsed), the payee signed
    /// (InvalidSignature). A submitter cannot have entries skipped by giving too little gas: then
    /// the whole call reverts (InsufficientGas) and the nonce stays unused.
    function settleBatchWithAuthorization(
        address payee,
        BatchEntry[] calldata entries,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external returns (uint256 paid);

    /// @notice `closeBatch` for `payee`, authorized by its signature over
    /// `CloseBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)`.
    /// Requirements as `settleBatchWithAuthorization`.
    function closeBatchWithAuthorization(
        address payee,
        BatchEntry[] calldata entries,
        uint256 nonce,
        uint256 deadline,
        bytes calldata payeeSignature
    ) external returns (uint256 paid);

    /*//////////////////////////////////////////////////////////////////////////
                                        VIEWS
    //////////////////////////////////////////////////////////////////////////*/

    /// @notice The id of the channel with these terms, opened or not:
    /// `keccak256(abi.encode(payer, payee, token, salt, authorizedSigner, escrow, chainId))`.
    function computeChannelId(
        address payer,
        address payee,
        address token,
        bytes32 salt,
        address authorizedSigner
    ) external view returns (bytes32 channelId);

    /// @notice A channel; all zero when it never existed.
    function getChannel(bytes32 channelId) external view returns (Channel memory channel);

    /// @notice Many channels, in the order asked.
    function getChannels(bytes32[] calldata channelIds)
        external
        view
        returns (Channel[] memory channels);

    /// @notice The EIP-712 digest a voucher's signer signs.
    function getVoucherDigest(bytes32 channelId, uint128 cumulativeAmount)
        external
        view
        returns (bytes32 digest);

    /// @notice Whether `signature` is `signer`'s over `digest`, by the very code that `settle` uses:
    /// give it the channel's signer and `getVoucherDigest`. The channel need not exist. A wallet is
    /// asked when `signer` has code; reverts InsufficientGas when called with too little gas.
    function isValidVoucherSigner(address signer, bytes32 digest, bytes calldata signature)
        external
        view
        returns (bool valid);

    /// @notice Whether a payee's authorization for one channel was used.
    function isNonceUsed(address payee, bytes32 channelId, uint256 nonce)
        external
        view
        returns (bool used);

    /// @notice Whether a payee's authorization for a batch was used.
    function isBatchNonceUsed(address payee, uint256 nonce) external view returns (bool used);

    /// @notice Refunds held for a payer because the token refused them.
    function claimable(address payer) external view returns (uint256 amount);

    /// @notice The EIP-712 domain separator, for the chain this runs on now.
    function domainSeparator() external view returns (bytes32 separator);

    /// @notice The one token of this escrow.
    function TOKEN() external view returns (address token);

    /// @notice Seconds between `requestClose` and `withdraw`: 15 minutes.
    function CLOSE_GRACE_PERIOD() external view returns (uint64 seconds_);

    /// @notice The greatest deposit of one channel: 2**88 - 1 base units.
    function DEPOSIT_MAX() external view returns (uint128 amount);

    /// @notice Gas a signer wallet gets to answer ERC-1271.
    function ERC1271_GAS_CAP() external view returns (uint256 gas_);

    /// @notice The longest signature that is passed on to a wallet, in bytes.
    function ERC1271_SIGNATURE_BYTES_MAX() external view returns (uint256 length);

    /// @notice Gas the token gets for a refund before it counts as refused.
    function REFUND_GAS_CAP() external view returns (uint256 gas_);

    /// @notice Permit2, at its canonical address.
    function PERMIT2() external view returns (address permit2);

    /// @notice keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)").
    function VOUCHER_TYPEHASH() external view returns (bytes32 typehash);
}

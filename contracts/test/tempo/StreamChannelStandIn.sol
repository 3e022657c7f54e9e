// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

interface IToken {
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
}

/// @notice Stands in for Tempo's escrow of session version 1 in tests: its interface, its events
/// and its signing domain, as draft-tempo-session-00 and clients describe them. Written for this
/// project; not the deployed contract, and not for money.
contract StreamChannelStandIn is EIP712 {
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

    error AmountExceedsDeposit();
    error AmountNotIncreasing();
    error ChannelAlreadyExists();
    error ChannelFinalized();
    error ChannelNotFound();
    error CloseNotReady();
    error DepositOverflow();
    error InvalidPayee();
    error InvalidSignature();
    error NotPayee();
    error NotPayer();
    error TransferFailed();

    event ChannelOpened(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        address token,
        address authorizedSigner,
        bytes32 salt,
        uint256 deposit
    );
    event TopUp(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 additionalDeposit,
        uint256 newDeposit
    );
    event Settled(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 cumulativeAmount,
        uint256 deltaPaid,
        uint256 newSettled
    );
    event CloseRequested(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 closeGraceEnd
    );
    event CloseRequestCancelled(
        bytes32 indexed channelId, address indexed payer, address indexed payee
    );
    event ChannelClosed(
        bytes32 indexed channelId,
        address indexed payer,
        address indexed payee,
        uint256 settledToPayee,
        uint256 refundedToPayer
    );

    uint64 public constant CLOSE_GRACE_PERIOD = 15 minutes;
    bytes32 public constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");

    mapping(bytes32 channelId => Channel channel) public channels;

    constructor() EIP712("Tempo Stream Channel", "1") {}

    function open(
        address payee,
        address token,
        uint128 deposit,
        bytes32 salt,
        address authorizedSigner
    ) external returns (bytes32 channelId) {
        if (payee == address(0)) revert InvalidPayee();
        channelId = computeChannelId(msg.sender, payee, token, salt, authorizedSigner);
        if (channels[channelId].payer != address(0)) revert ChannelAlreadyExists();
        channels[channelId] =
            Channel(false, 0, msg.sender, payee, token, authorizedSigner, deposit, 0);
        emit ChannelOpened(channelId, msg.sender, payee, token, authorizedSigner, salt, deposit);
        _pull(token, deposit);
    }

    function topUp(bytes32 channelId, uint256 additionalDeposit) external {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        if (additionalDeposit > type(uint128).max - channel.deposit) revert DepositOverflow();
        channel.deposit += uint128(additionalDeposit);
        if (channel.closeRequestedAt != 0) {
            channel.closeRequestedAt = 0;
            emit CloseRequestCancelled(channelId, channel.payer, channel.payee);
        }
        emit TopUp(channelId, channel.payer, channel.payee, additionalDeposit, channel.deposit);
        _pull(channel.token, additionalDeposit);
    }

    function settle(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature)
        external
    {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payee) revert NotPayee();
        if (cumulativeAmount <= channel.settled) revert AmountNotIncreasing();
        _settle(channelId, channel, cumulativeAmount, signature);
    }

    function close(bytes32 channelId, uint128 cumulativeAmount, bytes calldata signature) external {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payee) revert NotPayee();
        if (cumulativeAmount > channel.settled) {
            _settle(channelId, channel, cumulativeAmount, signature);
        }
        _end(channelId, channel);
    }

    function requestClose(bytes32 channelId) external {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        if (channel.closeRequestedAt != 0) return;
        channel.closeRequestedAt = uint64(block.timestamp);
        uint256 ends = block.timestamp + CLOSE_GRACE_PERIOD;
        emit CloseRequested(channelId, channel.payer, channel.payee, ends);
    }

    function withdraw(bytes32 channelId) external {
        Channel storage channel = _live(channelId);
        if (msg.sender != channel.payer) revert NotPayer();
        uint256 asked = channel.closeRequestedAt;
        if (asked == 0 || block.timestamp < asked + CLOSE_GRACE_PERIOD) revert CloseNotReady();
        _end(channelId, channel);
    }

    function getChannel(bytes32 channelId) external view returns (Channel memory) {
        return channels[channelId];
    }

    function getChannelsBatch(bytes32[] calldata channelIds)
        external
        view
        returns (Channel[] memory states)
    {
        states = new Channel[](channelIds.length);
        for (uint256 i; i < channelIds.length; ++i) {
            states[i] = channels[channelIds[i]];
        }
    }

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

    function getVoucherDigest(bytes32 channelId, uint128 cumulativeAmount)
        public
        view
        returns (bytes32)
    {
        return
            _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount)));
    }

    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    function _live(bytes32 channelId) private view returns (Channel storage channel) {
        channel = channels[channelId];
        if (channel.payer == address(0)) revert ChannelNotFound();
        if (channel.finalized) revert ChannelFinalized();
    }

    function _settle(
        bytes32 channelId,
        Channel storage channel,
        uint128 cumulativeAmount,
        bytes calldata signature
    ) private {
        if (cumulativeAmount > channel.deposit) {
            revert AmountExceedsDeposit();
        }
        address signer =
            channel.authorizedSigner == address(0) ? channel.payer : channel.authorizedSigner;
        (address recovered,,) =
            ECDSA.tryRecover(getVoucherDigest(channelId, cumulativeAmount), signature);
        if (recovered != signer) revert InvalidSignature();
        uint128 delta = cumulativeAmount - channel.settled;
        channel.settled = cumulativeAmount;
        emit Settled(
            channelId, channel.payer, channel.payee, cumulativeAmount, delta, cumulativeAmount
        );
        if (!IToken(channel.token).transfer(channel.payee, delta)) revert TransferFailed();
    }

    function _end(bytes32 channelId, Channel storage channel) private {
        uint128 refund = channel.deposit - channel.settled;
        channel.finalized = true;
        emit ChannelClosed(channelId, channel.payer, channel.payee, channel.settled, refund);
        if (refund != 0 && !IToken(channel.token).transfer(channel.payer, refund)) {
            revert TransferFailed();
        }
    }

    function _pull(address token, uint256 amount) private {
        if (!IToken(token).transferFrom(msg.sender, address(this), amount)) {
            revert TransferFailed();
        }
    }
}

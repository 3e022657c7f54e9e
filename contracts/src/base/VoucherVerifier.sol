// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {ISessionEscrow} from "../interfaces/ISessionEscrow.sol";
import {CappedCall} from "../libraries/CappedCall.sol";

/// @title What is signed, and by whom
/// @dev The order (ECDSA, then ERC-1271 if the signer has code) is the off-chain engine's too, so
/// that neither accepts what the other refuses.
abstract contract VoucherVerifier is ISessionEscrow, EIP712 {
    /// @inheritdoc ISessionEscrow
    bytes32 public constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)");

    /// @inheritdoc ISessionEscrow
    uint256 public constant ERC1271_GAS_CAP = 400_000;

    /// @inheritdoc ISessionEscrow
    uint256 public constant ERC1271_SIGNATURE_BYTES_MAX = 4096;

    bytes32 internal constant SETTLE_TYPEHASH = keccak256(
        "SettleAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
    );
    bytes32 internal constant CLOSE_TYPEHASH = keccak256(
        "CloseAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
    );
    bytes32 internal constant SETTLE_BATCH_TYPEHASH = keccak256(
        "SettleBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)"
        "BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
    );
    bytes32 internal constant CLOSE_BATCH_TYPEHASH = keccak256(
        "CloseBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)"
        "BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
    );
    bytes32 private constant BATCH_ENTRY_TYPEHASH =
        keccak256("BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)");

    constructor() EIP712("EVM Payment Channel", "1") {}

    /// @inheritdoc ISessionEscrow
    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @inheritdoc ISessionEscrow
    function getVoucherDigest(bytes32 channelId, uint128 cumulativeAmount)
        external
        view
        returns (bytes32)
    {
        return _voucherDigest(channelId, cumulativeAmount);
    }

    /// @inheritdoc ISessionEscrow
    function isValidVoucherSigner(address signer, bytes32 digest, bytes calldata signature)
        external
        view
        returns (bool)
    {
        return _isSignedBy(signer, digest, signature);
    }

    function _voucherDigest(bytes32 channelId, uint256 cumulativeAmount)
        internal
        view
        returns (bytes32)
    {
        return
            _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, cumulativeAmount)));
    }

    function _hashEntries(BatchEntry[] calldata entries) internal pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](entries.length);
        for (uint256 i = 0; i < entries.length; ++i) {
            BatchEntry calldata entry = entries[i];
            hashes[i] = keccak256(
                abi.encode(
                    BATCH_ENTRY_TYPEHASH,
                    entry.channelId,
                    entry.cumulativeAmount,
                    keccak256(entry.signature)
                )
            );
        }
        return keccak256(abi.encodePacked(hashes));
    }

    function _isSignedBy(address signer, bytes32 digest, bytes calldata signature)
        internal
        view
        returns (bool)
    {
        // A failed recovery gives zero, which is nobody; why it failed does not matter.
        // slither-disable-next-line unused-return
        (address recovered,,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (recovered == signer && signer != address(0)) return true;
        if (signer.code.length == 0) return false;
        if (signature.length > ERC1271_SIGNATURE_BYTES_MAX) return false;
        return CappedCall.isValidSignature(signer, digest, signature, ERC1271_GAS_CAP);
    }
}

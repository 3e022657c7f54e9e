// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The part of EIP-3009 the escrow uses
/// @notice The overload with `bytes` signature only: `to` must be the caller, so nobody can take
/// the authorization to the token directly and leave the deposit without a channel.
interface IReceiveWithAuthorization {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

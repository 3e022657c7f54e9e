// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Deploys one `SessionEscrow` per token, at an address anyone can compute
/// @notice The factory has the same address on every chain (CREATE2 deployer, zero salt). From it
/// and the escrow's init code follows the escrow of each token, so a client that pins factory and
/// code hash needs no list of escrows.
interface IEscrowFactory {
    /// @notice The escrow of `token` was deployed.
    event EscrowCreated(address indexed token, address escrow);

    /// @notice Deploys the escrow of `token`; anyone may call. A second call changes nothing and
    /// returns the same address.
    ///
    /// Requirements: `token` has code (`ISessionEscrow.InvalidToken`).
    function createEscrow(address token) external returns (address escrow);

    /// @notice Where the escrow of `token` is or will be:
    /// CREATE2 of this factory, salt zero, `keccak256(initCode ‖ abi.encode(token))`.
    function escrowOf(address token) external view returns (address escrow);
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {SessionEscrow} from "./SessionEscrow.sol";
import {IEscrowFactory} from "./interfaces/IEscrowFactory.sol";

/// @title Deploys one `SessionEscrow` per token
/// @notice See `IEscrowFactory`, which is the manual.
contract EscrowFactory is IEscrowFactory {
    /// @inheritdoc IEscrowFactory
    function createEscrow(address token) external returns (address escrow) {
        escrow = escrowOf(token);
        if (escrow.code.length != 0) return escrow;
        new SessionEscrow{salt: 0}(token);
        emit EscrowCreated(token, escrow);
    }

    /// @inheritdoc IEscrowFactory
    function escrowOf(address token) public view returns (address) {
        bytes32 codeHash =
            keccak256(abi.encodePacked(type(SessionEscrow).creationCode, abi.encode(token)));
        bytes32 hash = keccak256(abi.encodePacked(hex"ff", address(this), bytes32(0), codeHash));
        return address(uint160(uint256(hash)));
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {ISessionEscrow} from "../interfaces/ISessionEscrow.sol";

/// @title Calls whose failure must not stop the caller, and must not be faked
/// @dev Each gets a fixed allowance of gas. EVM keeps back one sixty-fourth of the gas at a call,
/// so unless enough is left the callee would get less than its allowance and a relayer could make
/// an honest wallet or token "fail". Then the whole transaction reverts instead.
library CappedCall {
    /// @dev Gas that must remain for the caller after the callee used its allowance: one storage
    /// slot, two events, the end of the batch.
    uint256 private constant RESERVE = 60_000;

    /// @dev Whether `wallet` confirms the signature by ERC-1271. Only the exact magic word, left
    /// aligned in at least 32 bytes, counts; more return data is not copied.
    function isValidSignature(
        address wallet,
        bytes32 digest,
        bytes calldata signature,
        uint256 gasCap
    ) internal view returns (bool valid) {
        bytes memory data = abi.encodeCall(IERC1271.isValidSignature, (digest, signature));
        bytes4 magic = IERC1271.isValidSignature.selector;
        requireGas(gasCap);
        assembly ("memory-safe") {
            mstore(0, 0)
            let success := staticcall(gasCap, wallet, add(data, 0x20), mload(data), 0, 0x20)
            valid := and(and(success, gt(returndatasize(), 0x1f)), eq(mload(0), magic))
        }
    }

    /// @dev Whether `token` (known to have code) moved the amount: it answered true, or nothing.
    function tryTransfer(address token, address to, uint256 amount, uint256 gasCap)
        internal
        returns (bool moved)
    {
        bytes memory data = abi.encodeCall(IERC20.transfer, (to, amount));
        requireGas(gasCap);
        assembly ("memory-safe") {
            mstore(0, 0)
            let success := call(gasCap, token, 0, add(data, 0x20), mload(data), 0, 0x20)
            let answered := and(gt(returndatasize(), 0x1f), eq(mload(0), 1))
            moved := and(success, or(answered, iszero(returndatasize())))
        }
    }

    function requireGas(uint256 gasCap) private view {
        if (gasleft() < (gasCap * 64) / 63 + RESERVE) revert ISessionEscrow.InsufficientGas();
    }
}

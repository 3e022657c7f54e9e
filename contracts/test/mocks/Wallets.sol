// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @dev A contract wallet that signs by one key, can change it, and can do anything as its owner.
contract KeyWallet {
    address public signer;

    constructor(address signer_) {
        signer = signer_;
    }

    function rotate(address signer_) external {
        signer = signer_;
    }

    function run(address target, bytes calldata payload) external returns (bytes memory answer) {
        bool success;
        (success, answer) = target.call(payload);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    function isValidSignature(bytes32 digest, bytes calldata signature)
        external
        view
        returns (bytes4)
    {
        (address recovered,,) = ECDSA.tryRecoverCalldata(digest, signature);
        return recovered == signer ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}

/// @dev Answers `isValidSignature` in every wrong way, and, for once, slowly but right.
contract OddWallet {
    enum Mode {
        Reverts,
        BurnsAllGas,
        ReturnsNothing,
        ReturnsShort,
        ReturnsTrue,
        ReturnsDirtyMagic,
        ReturnsWrongMagic,
        ReturnsBomb,
        UsesMuchGas
    }

    Mode public mode;
    uint256 public gasToUse;

    function set(Mode mode_, uint256 gasToUse_) external {
        (mode, gasToUse) = (mode_, gasToUse_);
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes32) {
        Mode mode_ = mode;
        if (mode_ == Mode.Reverts) revert("no");
        if (mode_ == Mode.BurnsAllGas) {
            while (true) {}
        }
        assembly ("memory-safe") {
            mstore(0, 0x1626ba7e00000000000000000000000000000000000000000000000000000000)
            if eq(mode_, 2) { return(0, 0) }
            if eq(mode_, 3) { return(0, 4) }
            if eq(mode_, 4) {
                mstore(0, 1)
                return(0, 32)
            }
            if eq(mode_, 5) {
                mstore(0, 0x1626ba7e00000000000000000000000000000000000000000000000000000001)
                return(0, 32)
            }
            if eq(mode_, 6) {
                mstore(0, 0x1626ba7f00000000000000000000000000000000000000000000000000000000)
                return(0, 32)
            }
            if eq(mode_, 7) { return(0, 300000) }
        }
        uint256 stop = gasleft() - gasToUse;
        while (gasleft() > stop) {}
        assembly ("memory-safe") {
            return(0, 32)
        }
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {OddWallet} from "../mocks/Wallets.sol";

/// @dev ENC-07, F-18, F-20.
contract IsValidVoucherSignerTest is Base {
    function test_Zero(bytes32 digest, bytes calldata signature) external view {
        assertFalse(escrow.isValidVoucherSigner(address(0), digest, signature));
    }

    function test_NoCode(bytes32 digest) external view {
        bytes memory signature = sign(payer, digest);
        assertTrue(escrow.isValidVoucherSigner(payer.addr, digest, signature));
        assertFalse(escrow.isValidVoucherSigner(payee.addr, digest, signature));
    }

    function test_OwnKeyWinsOverCode(bytes32 digest, uint8 mode) external {
        vm.etch(payer.addr, type(OddWallet).runtimeCode);
        OddWallet(payer.addr).set(OddWallet.Mode(bound(mode, 0, 6)), 0);
        bytes memory signature = sign(payer, digest);
        assertTrue(escrow.isValidVoucherSigner(payer.addr, digest, signature));
    }

    function test_Magic(bytes32 digest, bytes calldata signature, uint256 gasToUse) external {
        vm.assume(signature.length <= escrow.ERC1271_SIGNATURE_BYTES_MAX());
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.UsesMuchGas, bound(gasToUse, 0, 380_000));
        assertTrue(escrow.isValidVoucherSigner(address(wallet), digest, signature));
    }

    function test_WrongAnswer(bytes32 digest, bytes calldata signature, uint8 mode) external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode(bound(mode, 0, 6)), 0);
        assertFalse(escrow.isValidVoucherSigner(address(wallet), digest, signature));
    }

    function test_TooLong(bytes32 digest, uint256 size) external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.UsesMuchGas, 0);
        bytes memory signature = new bytes(bound(size, 4097, 10_000));
        assertFalse(escrow.isValidVoucherSigner(address(wallet), digest, signature));
    }

    function test_RevertWhen_TooLittleGas(bytes32 digest, uint256 gasLimit) external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.UsesMuchGas, 0);
        gasLimit = bound(gasLimit, 50_000, 460_000);
        vm.expectRevert(ISessionEscrow.InsufficientGas.selector);
        escrow.isValidVoucherSigner{gas: gasLimit}(address(wallet), digest, "");
    }

    function test_ABurningWalletCostsItsCap(bytes32 digest) external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.BurnsAllGas, 0);
        uint256 before = gasleft();
        assertFalse(escrow.isValidVoucherSigner(address(wallet), digest, ""));
        assertLt(before - gasleft(), escrow.ERC1271_GAS_CAP() + 50_000);
    }
}

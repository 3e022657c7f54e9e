// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {OddWallet} from "../mocks/Wallets.sol";

/// @dev RELAY-07.
contract CloseBatchWithAuthorizationTest is Base {
    ISessionEscrow.BatchEntry[] private entries;
    uint256 private deadline;

    function setUp() public override {
        super.setUp();
        deadline = block.timestamp + 1 hours;
        entries.push(entry(payer, open("first", address(0)), 10));
        entries.push(entry(payer, open("second", address(0)), 20));
    }

    function submit(uint256 nonce, bytes memory payees) private returns (uint256) {
        vm.prank(stranger.addr);
        return escrow.closeBatchWithAuthorization(payee.addr, entries, nonce, deadline, payees);
    }

    function signed(uint256 nonce) private view returns (bytes memory) {
        return authorizeBatch(payee, "Close", payee.addr, entries, nonce, deadline);
    }

    function test_RevertWhen_Late(uint256 late) external {
        bytes memory payees = signed(1);
        vm.warp(bound(late, deadline + 1, type(uint64).max));
        vm.expectRevert(ISessionEscrow.AuthorizationExpired.selector);
        submit(1, payees);
    }

    function test_RevertGiven_NonceUsed(uint256 nonce) external {
        bytes memory other = authorizeBatch(payee, "Settle", payee.addr, entries, nonce, deadline);
        submit(nonce, signed(nonce));
        bytes memory again = signed(nonce);
        vm.expectRevert(ISessionEscrow.NonceAlreadyUsed.selector);
        submit(nonce, again);
        vm.expectRevert(ISessionEscrow.NonceAlreadyUsed.selector);
        escrow.settleBatchWithAuthorization(payee.addr, entries, nonce, deadline, other);
    }

    function test_RevertWhen_AnEntryDiffers(bytes calldata garbage) external {
        bytes memory payees = signed(1);
        bytes memory kept = entries[1].signature;
        entries[1].signature = garbage;
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(1, payees);
        entries[1].signature = kept;
        entries[1].cumulativeAmount = 19;
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(1, payees);
        entries.pop();
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(1, payees);
    }

    function test_RevertWhen_NonceOrDeadlineDiffer(uint256 nonce, uint256 later) external {
        vm.assume(nonce != 1);
        bytes memory payees = signed(1);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(nonce, payees);
        deadline = bound(later, deadline + 1, type(uint256).max);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(1, payees);
    }

    function test_RevertWhen_NotThePayeeForThis() external {
        bytes[3] memory wrong = [
            authorizeBatch(payer, "Close", payee.addr, entries, 1, deadline),
            authorizeBatch(payee, "Settle", payee.addr, entries, 1, deadline),
            authorizeBatch(payee, "Close", stranger.addr, entries, 1, deadline)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
            submit(1, wrong[i]);
        }
    }

    function test_AnotherPayeesBatchSkipsAll() external {
        bytes memory theirs = authorizeBatch(stranger, "Close", stranger.addr, entries, 1, deadline);
        assertEq(escrow.closeBatchWithAuthorization(stranger.addr, entries, 1, deadline, theirs), 0);
        assertEq(token.balanceOf(stranger.addr), PLENTY);
        assertFalse(escrow.isBatchNonceUsed(payee.addr, 1));
    }

    function test_NoGasLimitLeavesAnEntryOut(uint256 gasLimit) external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.UsesMuchGas, 300_000);
        entries.push(entry(payer, open("slow", address(wallet)), 40));
        bytes memory payees = signed(1);
        gasLimit = bound(gasLimit, 50_000, 1_500_000);
        try escrow.closeBatchWithAuthorization{gas: gasLimit}(
            payee.addr, entries, 1, deadline, payees
        ) returns (
            uint256 paid
        ) {
            assertEq(paid, 70);
            assertEq(escrow.claimable(payer.addr), 0);
        } catch {
            assertFalse(escrow.isBatchNonceUsed(payee.addr, 1));
            assertEq(token.balanceOf(payee.addr), PLENTY);
        }
    }

    function test_PaysThePayee(uint256 nonce, uint256 wait) external {
        bytes memory payees = signed(nonce);
        skip(bound(wait, 0, 1 hours));
        assertEq(submit(nonce, payees), 30);
        assertEq(token.balanceOf(payee.addr), PLENTY + 30);
        assertEq(token.balanceOf(stranger.addr), PLENTY);
        assertTrue(escrow.isBatchNonceUsed(payee.addr, nonce));
        assertEq(escrow.getChannel(entries[0].channelId).finalized, true);
    }
}

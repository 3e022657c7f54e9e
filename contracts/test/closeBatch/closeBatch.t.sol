// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev F-79, F-86.
contract CloseBatchTest is Base {
    ISessionEscrow.BatchEntry[] private entries;

    function test_GivenNoEntries() external {
        vm.recordLogs();
        assertEq(escrow.closeBatch(entries), 0);
        assertEq(vm.getRecordedLogs().length, 0);
    }

    function test_SkipsWhatCloseWouldRefuse(bytes calldata garbage) external {
        vm.prank(payer.addr);
        bytes32 others = escrow.open(stranger.addr, address(token), DEPOSIT, 0, address(0));
        bytes32 good = open("good", address(0));
        bytes32 unsigned = open("unsigned", address(0));
        entries.push(entry(payer, "nothing", 1));
        entries.push(entry(payer, finalizedChannel(), 1));
        entries.push(entry(payer, others, 1));
        entries.push(entry(payer, good, DEPOSIT + 1));
        entries.push(ISessionEscrow.BatchEntry(unsigned, 1, garbage));
        bytes4[5] memory reasons = [
            ISessionEscrow.ChannelNotFound.selector,
            ISessionEscrow.ChannelFinalized.selector,
            ISessionEscrow.NotPayee.selector,
            ISessionEscrow.AmountExceedsDeposit.selector,
            ISessionEscrow.InvalidSignature.selector
        ];
        for (uint256 i = 0; i < reasons.length; ++i) {
            vm.expectEmit(address(escrow));
            emit ISessionEscrow.BatchEntrySkipped(entries[i].channelId, reasons[i]);
        }
        entries.push(entry(payer, good, 7));
        vm.prank(payee.addr);
        assertEq(escrow.closeBatch(entries), 7);
        assertTrue(escrow.getChannel(good).finalized);
        assertFalse(escrow.getChannel(unsigned).finalized);
        assertFalse(escrow.getChannel(others).finalized);
    }

    function test_ClosesAChannelOnce(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        open("another", address(0));
        entries.push(entry(payer, channelId, amount));
        entries.push(entry(payer, channelId, amount));
        entries.push(ISessionEscrow.BatchEntry(channelId, 0, ""));
        vm.prank(payee.addr);
        assertEq(escrow.closeBatch(entries), amount);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT);
        assertEq(token.balanceOf(payer.addr), PLENTY - DEPOSIT - amount);
    }

    function test_ForfeitsWithoutASignature(uint128 settled) external {
        settled = uint128(bound(settled, 1, DEPOSIT));
        bytes32 channelId = open();
        settleAs(payee, channelId, settled);
        entries.push(ISessionEscrow.BatchEntry(channelId, settled, ""));
        vm.prank(payee.addr);
        assertEq(escrow.closeBatch(entries), 0);
        assertEq(token.balanceOf(payer.addr), PLENTY - settled);
    }

    function test_HoldsARefusedRefund(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT - 1));
        entries.push(entry(payer, open(), amount));
        entries.push(entry(stranger, openBy(stranger.addr, 0, address(0)), amount));
        token.blacklist(payer.addr);
        vm.prank(payee.addr);
        assertEq(escrow.closeBatch(entries), 2 * uint256(amount));
        assertEq(escrow.claimable(payer.addr), DEPOSIT - amount);
        assertEq(token.balanceOf(stranger.addr), PLENTY - amount);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT - amount);
    }

    function test_AddsUpWhatItHolds(uint8 count) external {
        count = uint8(bound(count, 1, 10));
        for (uint256 i = 0; i < count; ++i) {
            entries.push(ISessionEscrow.BatchEntry(open(bytes32(i), address(0)), 0, ""));
        }
        token.blacklist(payer.addr);
        vm.prank(payee.addr);
        escrow.closeBatch(entries);
        assertEq(escrow.claimable(payer.addr), uint256(count) * DEPOSIT);
    }

    function test_PaysAll(uint128[4] memory amounts) external {
        Person[4] memory payers = [payer, stranger, signer, person("fourth")];
        uint256 sum;
        for (uint256 i = 0; i < payers.length; ++i) {
            uint128 amount = uint128(bound(amounts[i], 1, DEPOSIT));
            entries.push(entry(payers[i], openBy(payers[i].addr, 0, address(0)), amount));
            sum += amount;
        }
        vm.prank(payee.addr);
        assertEq(escrow.closeBatch(entries), sum);
        assertEq(token.balanceOf(payee.addr), PLENTY + sum);
        assertEq(token.balanceOf(address(escrow)), 0);
        for (uint256 i = 0; i < payers.length; ++i) {
            assertEq(token.balanceOf(payers[i].addr), PLENTY - entries[i].cumulativeAmount);
            assertTrue(escrow.getChannel(entries[i].channelId).finalized);
        }
    }
}

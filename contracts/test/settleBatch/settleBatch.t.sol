// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {OddWallet} from "../mocks/Wallets.sol";

/// @dev F-79, F-80.
contract SettleBatchTest is Base {
    ISessionEscrow.BatchEntry[] private entries;

    /// @dev Settles a batch of the bad entry between two good ones and expects it skipped.
    function expectSkipped(ISessionEscrow.BatchEntry memory bad, bytes4 reason) private {
        entries.push(entry(payer, open("good 1", address(0)), 10));
        entries.push(bad);
        entries.push(entry(payer, open("good 2", address(0)), 20));
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.BatchEntrySkipped(bad.channelId, reason);
        uint256 before = token.balanceOf(payee.addr);
        vm.prank(payee.addr);
        assertEq(escrow.settleBatch(entries), 30);
        assertEq(token.balanceOf(payee.addr), before + 30);
    }

    function test_GivenNoEntries() external {
        vm.recordLogs();
        assertEq(escrow.settleBatch(entries), 0);
        assertEq(vm.getRecordedLogs().length, 0);
    }

    function test_SkipsWhen_NoChannel(bytes32 channelId) external {
        expectSkipped(entry(payer, channelId, 1), ISessionEscrow.ChannelNotFound.selector);
    }

    function test_SkipsWhen_Finalized() external {
        bytes32 channelId = finalizedChannel();
        expectSkipped(entry(payer, channelId, 1), ISessionEscrow.ChannelFinalized.selector);
    }

    function test_SkipsWhen_NotPayee() external {
        vm.prank(payer.addr);
        bytes32 channelId = escrow.open(stranger.addr, address(token), DEPOSIT, 0, address(0));
        expectSkipped(entry(payer, channelId, 1), ISessionEscrow.NotPayee.selector);
    }

    function test_SkipsWhen_NotIncreasing(uint128 settled, uint128 amount) external {
        settled = uint128(bound(settled, 1, DEPOSIT));
        amount = uint128(bound(amount, 0, settled));
        bytes32 channelId = open();
        settleAs(payee, channelId, settled);
        expectSkipped(entry(payer, channelId, amount), ISessionEscrow.AmountNotIncreasing.selector);
    }

    function test_SkipsWhen_AboveDeposit(uint128 amount) external {
        amount = uint128(bound(amount, uint256(DEPOSIT) + 1, type(uint128).max));
        expectSkipped(entry(payer, open(), amount), ISessionEscrow.AmountExceedsDeposit.selector);
    }

    function test_SkipsWhen_BadSignature(bytes calldata garbage, uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        expectSkipped(
            ISessionEscrow.BatchEntry(channelId, amount, garbage),
            ISessionEscrow.InvalidSignature.selector
        );
    }

    function test_SkipsWhen_WalletBurnsGas() external {
        OddWallet wallet = new OddWallet();
        wallet.set(OddWallet.Mode.BurnsAllGas, 0);
        bytes32 channelId = open(0, address(wallet));
        expectSkipped(entry(payer, channelId, 1), ISessionEscrow.InvalidSignature.selector);
    }

    function test_PaysAChannelTwiceOnlyItsIncrease(uint128 first, uint128 second) external {
        first = uint128(bound(first, 1, DEPOSIT - 1));
        second = uint128(bound(second, first + 1, DEPOSIT));
        bytes32 channelId = open();
        entries.push(entry(payer, channelId, first));
        entries.push(entry(payer, channelId, second));
        entries.push(entry(payer, channelId, first));
        vm.prank(payee.addr);
        assertEq(escrow.settleBatch(entries), second);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT - second);
    }

    function test_RevertGiven_PayeeRefused() external {
        bytes32 channelId = open();
        token.blacklist(payee.addr);
        entries.push(entry(payer, channelId, 1));
        vm.prank(payee.addr);
        vm.expectRevert();
        escrow.settleBatch(entries);
        assertEq(escrow.getChannel(channelId).settled, 0);
    }

    function test_PaysTheSum(uint128[5] memory amounts) external {
        uint256 sum;
        for (uint256 i = 0; i < amounts.length; ++i) {
            uint128 amount = uint128(bound(amounts[i], 1, DEPOSIT));
            bytes32 channelId = openBy(stranger.addr, bytes32(i), signer.addr);
            entries.push(entry(signer, channelId, amount));
            sum += amount;
        }
        for (uint256 i = 0; i < entries.length; ++i) {
            uint256 paid = entries[i].cumulativeAmount;
            vm.expectEmit(address(escrow));
            emit ISessionEscrow.Settled(
                entries[i].channelId, stranger.addr, payee.addr, paid, paid, paid
            );
        }
        vm.prank(payee.addr);
        assertEq(escrow.settleBatch(entries), sum);
        assertEq(token.balanceOf(payee.addr), PLENTY + sum);
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-04, CLOSE-07.
contract CloseTest is Base {
    function test_RevertGiven_NoChannel(bytes32 channelId, uint128 amount) external {
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        escrow.close(channelId, amount, "");
    }

    function test_RevertGiven_Finalized(uint128 amount) external {
        bytes32 channelId = finalizedChannel();
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.close(channelId, amount, "");
    }

    function test_RevertWhen_NotPayee(address caller, uint128 amount) external {
        vm.assume(caller != payee.addr);
        bytes32 channelId = open();
        vm.prank(caller);
        vm.expectRevert(ISessionEscrow.NotPayee.selector);
        escrow.close(channelId, amount, "");
    }

    function test_RevertWhen_AboveDeposit(uint128 amount) external {
        amount = uint128(bound(amount, uint256(DEPOSIT) + 1, type(uint128).max));
        bytes32 channelId = open();
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.AmountExceedsDeposit.selector);
        escrow.close(channelId, amount, signature);
    }

    function test_RevertWhen_NotSigner(uint128 amount, bytes calldata garbage) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.close(channelId, amount, garbage);
    }

    function test_ForfeitsAtOrBelowSettled(uint128 settled, uint128 amount, bytes calldata any)
        external
    {
        settled = uint128(bound(settled, 1, DEPOSIT));
        amount = uint128(bound(amount, 0, settled));
        bytes32 channelId = open();
        settleAs(payee, channelId, settled);
        vm.prank(payee.addr);
        escrow.close(channelId, amount, any);
        assertEq(token.balanceOf(payee.addr), PLENTY + settled);
        assertEq(token.balanceOf(payer.addr), PLENTY - settled);
        assertEq(escrow.getChannel(channelId).settled, settled);
    }

    function test_HoldsARefusedRefund(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT - 1));
        bytes32 channelId = open();
        token.blacklist(payer.addr);
        bytes memory signature = voucher(payer, channelId, amount);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.RefundHeld(channelId, payer.addr, DEPOSIT - amount);
        vm.prank(payee.addr);
        escrow.close(channelId, amount, signature);
        assertEq(token.balanceOf(payee.addr), PLENTY + amount);
        assertEq(escrow.claimable(payer.addr), DEPOSIT - amount);
        assertTrue(escrow.getChannel(channelId).finalized);
    }

    function test_RevertGiven_PayeeRefused() external {
        bytes32 channelId = open();
        token.blacklist(payee.addr);
        bytes memory signature = voucher(payer, channelId, 5);
        vm.prank(payee.addr);
        vm.expectRevert();
        escrow.close(channelId, 5, signature);
        assertFalse(escrow.getChannel(channelId).finalized);
    }

    function test_PaysBothAndFinalizes(uint128 settled, uint128 amount) external {
        settled = uint128(bound(settled, 0, DEPOSIT - 1));
        amount = uint128(bound(amount, settled + 1, DEPOSIT));
        bytes32 channelId = open();
        if (settled != 0) settleAs(payee, channelId, settled);
        bytes memory signature = voucher(payer, channelId, amount);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.ChannelClosed(
            channelId, payer.addr, payee.addr, amount, DEPOSIT - amount
        );
        vm.prank(payee.addr);
        escrow.close(channelId, amount, signature);
        assertEq(token.balanceOf(payee.addr), PLENTY + amount);
        assertEq(token.balanceOf(payer.addr), PLENTY - amount);
        assertEq(token.balanceOf(address(escrow)), 0);
        assertTrue(escrow.getChannel(channelId).finalized);
    }

    function test_PaysNothingEverAfter() external {
        bytes32 channelId = open();
        open("another", address(0));
        requestClose(channelId);
        bytes memory higher = voucher(payer, channelId, 9);
        vm.startPrank(payee.addr);
        escrow.close(channelId, 0, "");
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.settle(channelId, 9, higher);
        vm.stopPrank();
        skip(GRACE);
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.withdraw(channelId);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT);
    }
}

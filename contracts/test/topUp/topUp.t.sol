// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-03.
contract TopUpTest is Base {
    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        escrow.topUp(channelId, 1);
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.topUp(channelId, 1);
    }

    function test_RevertWhen_NotPayer(address caller) external {
        vm.assume(caller != payer.addr);
        bytes32 channelId = open();
        vm.prank(caller);
        vm.expectRevert(ISessionEscrow.NotPayer.selector);
        escrow.topUp(channelId, 1);
    }

    function test_RevertWhen_Zero() external {
        bytes32 channelId = open();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        escrow.topUp(channelId, 0);
    }

    function test_RevertWhen_Overflow(uint128 amount) external {
        amount = uint128(bound(amount, uint256(type(uint88).max) - DEPOSIT + 1, type(uint128).max));
        bytes32 channelId = open();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        escrow.topUp(channelId, amount);
    }

    function test_RaisesDeposit(uint128 amount) external {
        amount = uint128(bound(amount, 1, uint256(type(uint88).max) - DEPOSIT));
        bytes32 channelId = open();
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.TopUp(channelId, payer.addr, payee.addr, amount, DEPOSIT + amount);
        vm.prank(payer.addr);
        escrow.topUp(channelId, amount);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + amount);
        assertEq(token.balanceOf(address(escrow)), uint256(DEPOSIT) + amount);
    }

    function test_LeavesTheRest(uint128 amount) external {
        amount = uint128(bound(amount, 1, uint256(type(uint88).max) - DEPOSIT));
        bytes32 channelId = open(0, signer.addr);
        bytes memory signature = voucher(signer, channelId, 9);
        vm.prank(payee.addr);
        escrow.settle(channelId, 9, signature);
        vm.prank(payer.addr);
        escrow.topUp(channelId, amount);
        ISessionEscrow.Channel memory channel = escrow.getChannel(channelId);
        assertEq(channel.authorizedSigner, signer.addr);
        assertEq(channel.settled, 9);
        assertEq(channel.payer, payer.addr);
        assertEq(channel.payee, payee.addr);
    }

    function test_CancelsPendingClose() external {
        bytes32 channelId = open();
        requestClose(channelId);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.CloseRequestCancelled(channelId, payer.addr, payee.addr);
        vm.prank(payer.addr);
        escrow.topUp(channelId, 1);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, 0);
        skip(GRACE);
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.CloseNotReady.selector);
        escrow.withdraw(channelId);
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-06.
contract WithdrawTest is Base {
    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        escrow.withdraw(channelId);
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.withdraw(channelId);
    }

    function test_RevertWhen_NotPayer(address caller) external {
        vm.assume(caller != payer.addr);
        bytes32 channelId = open();
        requestClose(channelId);
        skip(GRACE);
        vm.prank(caller);
        vm.expectRevert(ISessionEscrow.NotPayer.selector);
        escrow.withdraw(channelId);
    }

    function test_RevertGiven_NotRequested(uint256 wait) external {
        bytes32 channelId = open();
        skip(bound(wait, 0, 3650 days));
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.CloseNotReady.selector);
        escrow.withdraw(channelId);
    }

    function test_RevertGiven_TooEarly(uint256 wait) external {
        bytes32 channelId = open();
        requestClose(channelId);
        skip(bound(wait, 0, GRACE - 1));
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.CloseNotReady.selector);
        escrow.withdraw(channelId);
    }

    function test_PaysTheRest(uint128 settled, uint256 wait) external {
        settled = uint128(bound(settled, 0, DEPOSIT - 1));
        bytes32 channelId = open();
        if (settled != 0) settleAs(payee, channelId, settled);
        requestClose(channelId);
        skip(bound(wait, GRACE, 3650 days));
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.ChannelClosed(
            channelId, payer.addr, payee.addr, settled, DEPOSIT - settled
        );
        vm.prank(payer.addr);
        escrow.withdraw(channelId);
        assertEq(token.balanceOf(payer.addr), PLENTY - settled);
        assertEq(token.balanceOf(address(escrow)), 0);
        assertTrue(escrow.getChannel(channelId).finalized);
    }

    function test_GivenAllSettled() external {
        bytes32 channelId = open();
        settleAs(payee, channelId, DEPOSIT);
        requestClose(channelId);
        skip(GRACE);
        vm.recordLogs();
        vm.prank(payer.addr);
        escrow.withdraw(channelId);
        assertEq(vm.getRecordedLogs().length, 1);
        assertTrue(escrow.getChannel(channelId).finalized);
    }
}

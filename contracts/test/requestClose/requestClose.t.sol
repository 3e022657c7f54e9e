// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-05.
contract RequestCloseTest is Base {
    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        escrow.requestClose(channelId);
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.requestClose(channelId);
    }

    function test_RevertWhen_NotPayer(address caller) external {
        vm.assume(caller != payer.addr);
        bytes32 channelId = open();
        vm.prank(caller);
        vm.expectRevert(ISessionEscrow.NotPayer.selector);
        escrow.requestClose(channelId);
    }

    function test_GivenPendingChangesNothing(uint256 wait) external {
        bytes32 channelId = open(0, signer.addr);
        requestClose(channelId);
        uint64 askedAt = escrow.getChannel(channelId).closeRequestedAt;
        skip(bound(wait, 1, 365 days));
        vm.recordLogs();
        requestClose(channelId);
        assertEq(vm.getRecordedLogs().length, 0);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, askedAt);
    }

    function test_StartsTheClock(address signer_) external {
        bytes32 channelId = open(0, signer_);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.CloseRequested(
            channelId, payer.addr, payee.addr, block.timestamp + GRACE
        );
        requestClose(channelId);
        ISessionEscrow.Channel memory channel = escrow.getChannel(channelId);
        assertEq(channel.closeRequestedAt, block.timestamp);
        assertEq(channel.authorizedSigner, signer_);
        assertEq(channel.deposit, DEPOSIT);
    }
}

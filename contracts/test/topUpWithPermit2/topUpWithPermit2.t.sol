// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-10, TOPUP-05, AMB-25, F-62.
contract TopUpWithPermit2Test is Base {
    function submit(bytes32 channelId, uint128 amount, Permit memory p) private {
        submitAs(signer, channelId, amount, p);
    }

    function submitAs(Person memory sender, bytes32 channelId, uint128 amount, Permit memory p)
        private
    {
        vm.prank(sender.addr);
        escrow.topUpWithPermit2(channelId, amount, p.from, p.nonce, p.deadline, p.signature);
    }

    function test_RevertWhen_PermitIsForAnother(uint128 amount) external {
        amount = uint128(bound(amount, 1, 1e18));
        vm.assume(amount != 7);
        bytes32 channelId = open();
        bytes32 other = open("other", address(0));
        Permit memory p = topUpPermit(payer, 7, channelId, 1);
        vm.expectRevert();
        submit(other, 7, p);
        vm.expectRevert();
        submit(channelId, amount, p);
        p.from = stranger.addr;
        vm.expectRevert();
        submit(channelId, 7, p);
    }

    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        Permit memory p = topUpPermit(payer, 7, channelId, 1);
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        submit(channelId, 7, p);
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        Permit memory p = topUpPermit(payer, 7, channelId, 1);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        submit(channelId, 7, p);
    }

    function test_RevertWhen_AmountIsOutOfBounds(uint128 amount) external {
        amount = uint128(bound(amount, type(uint88).max - DEPOSIT + 1, type(uint128).max));
        bytes32 channelId = open();
        Permit memory p = topUpPermit(payer, 0, channelId, 1);
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        submit(channelId, 0, p);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        submit(channelId, amount, p);
    }

    function test_RevertGiven_SubmittedBefore() external {
        bytes32 channelId = open();
        Permit memory p = topUpPermit(payer, 7, channelId, 1);
        submit(channelId, 7, p);
        vm.expectRevert();
        submit(channelId, 7, p);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + 7);
    }

    /// @dev The payer's own transaction cancels, whoever funds it.
    function test_PayerCancelsPendingClose(bool own) external {
        bytes32 channelId = open();
        requestClose(channelId);
        submitAs(payer, channelId, 7, topUpPermit(own ? payer : stranger, 7, channelId, 1));
        assertEq(escrow.getChannel(channelId).closeRequestedAt, 0);
    }

    /// @dev O-29: nor does the payer's own permit, sent by another.
    function test_NobodyElseCancelsPendingClose(uint128 amount, bool own) external {
        amount = uint128(bound(amount, 1, 1e18));
        bytes32 channelId = open();
        Permit memory p = topUpPermit(own ? payer : stranger, amount, channelId, 1);
        requestClose(channelId);
        uint64 askedAt = escrow.getChannel(channelId).closeRequestedAt;
        submit(channelId, amount, p);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, askedAt);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + amount);
    }

    function test_RaisesDeposit(uint128 amount, uint256 nonce) external {
        amount = uint128(bound(amount, 1, uint256(type(uint88).max) - DEPOSIT));
        bytes32 channelId = open();
        submit(channelId, amount, topUpPermit(payer, amount, channelId, nonce));
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + amount);
        assertEq(token.balanceOf(address(escrow)), uint256(DEPOSIT) + amount);
    }
}

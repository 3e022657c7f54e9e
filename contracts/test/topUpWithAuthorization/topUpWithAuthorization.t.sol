// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-09, TOPUP-05, AMB-25, F-62.
contract TopUpWithAuthorizationTest is Base {
    function signed(Person memory by, bytes32 channelId, uint128 amount, bytes32 salt)
        private
        view
        returns (Authorization memory)
    {
        return authorization(by, amount, topUpNonce(channelId, amount, by.addr, salt));
    }

    function submit(bytes32 channelId, uint128 amount, bytes32 salt, Authorization memory a)
        private
    {
        submitAs(signer, channelId, amount, salt, a);
    }

    function submitAs(
        Person memory sender,
        bytes32 channelId,
        uint128 amount,
        bytes32 salt,
        Authorization memory a
    ) private {
        vm.prank(sender.addr);
        escrow.topUpWithAuthorization(
            channelId, amount, a.from, salt, a.validAfter, a.validBefore, a.nonce, a.signature
        );
    }

    function test_RevertWhen_NonceIsAnother(bytes32 other, uint128 amount) external {
        bytes32 channelId = open();
        vm.assume(other != channelId && other != 0 && amount != 7);
        Authorization memory a = signed(payer, channelId, 7, 0);
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(other, 7, 0, a);
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(channelId, amount, 0, a);
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(channelId, 7, other, a);
        a.from = stranger.addr;
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(channelId, 7, 0, a);
    }

    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        Authorization memory a = signed(payer, channelId, 7, 0);
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        submit(channelId, 7, 0, a);
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        Authorization memory a = signed(payer, channelId, 7, 0);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        submit(channelId, 7, 0, a);
    }

    function test_RevertWhen_AmountIsOutOfBounds(uint128 amount) external {
        amount = uint128(bound(amount, type(uint88).max - DEPOSIT + 1, type(uint128).max));
        bytes32 channelId = open();
        Authorization memory a = signed(payer, channelId, 0, 0);
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        submit(channelId, 0, 0, a);
        a = signed(payer, channelId, amount, 0);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        submit(channelId, amount, 0, a);
    }

    function test_RevertGiven_SubmittedBefore() external {
        bytes32 channelId = open();
        Authorization memory a = signed(payer, channelId, 7, 0);
        submit(channelId, 7, 0, a);
        vm.expectRevert();
        submit(channelId, 7, 0, a);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + 7);
    }

    /// @dev The payer's own transaction cancels, whoever funds it.
    function test_PayerCancelsPendingClose(bool own) external {
        bytes32 channelId = open();
        requestClose(channelId);
        Authorization memory a = signed(own ? payer : stranger, channelId, 7, 0);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.CloseRequestCancelled(channelId, payer.addr, payee.addr);
        submitAs(payer, channelId, 7, 0, a);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, 0);
    }

    /// @dev O-29: a payee keeps what the payer signed before it asked to leave, and sends it later.
    function test_NobodyElseCancelsPendingClose(uint128 amount, uint256 wait, bool own) external {
        amount = uint128(bound(amount, 1, 1e18));
        Person memory funder = own ? payer : stranger;
        bytes32 channelId = open();
        Authorization memory a = signed(funder, channelId, amount, 0);
        requestClose(channelId);
        uint64 askedAt = escrow.getChannel(channelId).closeRequestedAt;
        skip(bound(wait, 0, GRACE));
        submit(channelId, amount, 0, a);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, askedAt);
        vm.warp(askedAt + GRACE);
        vm.prank(payer.addr);
        escrow.withdraw(channelId);
        assertEq(token.balanceOf(payer.addr), own ? PLENTY : PLENTY + amount);
        assertEq(token.balanceOf(stranger.addr), own ? PLENTY : PLENTY - amount);
    }

    function test_RaisesDeposit(uint128 amount, bytes32 salt) external {
        amount = uint128(bound(amount, 1, uint256(type(uint88).max) - DEPOSIT));
        bytes32 channelId = open(0, signer.addr);
        Authorization memory a = signed(payer, channelId, amount, salt);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.TopUp(channelId, payer.addr, payee.addr, amount, DEPOSIT + amount);
        submit(channelId, amount, salt, a);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT + amount);
        assertEq(token.balanceOf(payer.addr), PLENTY - DEPOSIT - amount);
    }
}

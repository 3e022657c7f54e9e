// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-01.
contract OpenTest is Base {
    function test_RevertWhen_TokenIsAnother(address other) external {
        vm.assume(other != address(token));
        vm.prank(payer.addr);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrow.InvalidToken.selector, other));
        escrow.open(payee.addr, other, DEPOSIT, 0, address(0));
    }

    function test_RevertWhen_PayeeIsZero() external {
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.InvalidPayee.selector);
        escrow.open(address(0), address(token), DEPOSIT, 0, address(0));
    }

    function test_RevertWhen_DepositIsZero() external {
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        escrow.open(payee.addr, address(token), 0, 0, address(0));
    }

    function test_RevertWhen_DepositExceedsMaximum(uint128 deposit) external {
        deposit = uint128(bound(deposit, uint256(type(uint88).max) + 1, type(uint128).max));
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        escrow.open(payee.addr, address(token), deposit, 0, address(0));
    }

    function test_RevertGiven_SameTermsOpen() external {
        open();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelAlreadyExists.selector);
        escrow.open(payee.addr, address(token), 1, 0, address(0));
    }

    function test_RevertGiven_SameTermsFinalized() external {
        finalizedChannel();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelAlreadyExists.selector);
        escrow.open(payee.addr, address(token), 1, "finalized", address(0));
    }

    function test_RevertGiven_NotApproved() external {
        vm.startPrank(payer.addr);
        token.approve(address(escrow), DEPOSIT - 1);
        vm.expectRevert();
        escrow.open(payee.addr, address(token), DEPOSIT, 0, address(0));
        bytes32 channelId = idOf(payer.addr, payee.addr, 0, address(0));
        assertEq(escrow.getChannel(channelId).payer, address(0));
    }

    function test_RecordsTermsAndPullsDeposit(
        address payer_,
        address payee_,
        uint128 deposit,
        bytes32 salt,
        address signer_
    ) external {
        vm.assume(payer_ != address(0) && payer_ != address(escrow) && payee_ != address(0));
        deposit = uint128(bound(deposit, 1, type(uint88).max));
        token.mint(payer_, deposit);
        uint256 before = token.balanceOf(payer_);
        vm.startPrank(payer_);
        token.approve(address(escrow), deposit);
        bytes32 channelId = escrow.open(payee_, address(token), deposit, salt, signer_);
        ISessionEscrow.Channel memory channel = escrow.getChannel(channelId);
        assertFalse(channel.finalized);
        assertEq(channel.closeRequestedAt, 0);
        assertEq(channel.payer, payer_);
        assertEq(channel.payee, payee_);
        assertEq(channel.token, address(token));
        assertEq(channel.authorizedSigner, signer_);
        assertEq(channel.deposit, deposit);
        assertEq(channel.settled, 0);
        assertEq(token.balanceOf(payer_), before - deposit);
        assertEq(token.balanceOf(address(escrow)), deposit);
    }

    function test_ReturnsIdAndEmits(bytes32 salt, address signer_) external {
        bytes32 channelId = idOf(payer.addr, payee.addr, salt, signer_);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.ChannelOpened(
            channelId, payer.addr, payee.addr, address(token), signer_, salt, DEPOSIT
        );
        assertEq(open(salt, signer_), channelId);
    }

    function test_KeepsChannelsApart(bytes32 salt, bytes32 other) external {
        vm.assume(salt != other);
        bytes32 first = open(salt, address(0));
        bytes32 second = open(other, address(0));
        settleAs(payee, first, 7);
        assertEq(escrow.getChannel(second).settled, 0);
        assertEq(escrow.getChannel(first).settled, 7);
    }
}

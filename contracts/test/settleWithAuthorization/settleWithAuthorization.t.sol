// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev RELAY-01, RELAY-02, RELAY-03, RELAY-04, RELAY-05.
contract SettleWithAuthorizationTest is Base {
    uint256 private deadline;

    function setUp() public override {
        super.setUp();
        deadline = block.timestamp + 1 hours;
    }

    function submit(bytes32 channelId, uint128 amount, uint256 nonce, bytes memory payees) private {
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(stranger.addr);
        escrow.settleWithAuthorization(channelId, amount, nonce, deadline, payees, signature);
    }

    function signed(bytes32 channelId, uint128 amount, uint256 nonce)
        private
        view
        returns (bytes memory)
    {
        return authorize(payee, "Settle", channelId, amount, nonce, deadline);
    }

    function test_RevertWhen_Late(uint256 late) external {
        bytes32 channelId = open();
        bytes memory payees = signed(channelId, 5, 1);
        vm.warp(bound(late, deadline + 1, type(uint64).max));
        vm.expectRevert(ISessionEscrow.AuthorizationExpired.selector);
        submit(channelId, 5, 1, payees);
    }

    function test_RevertGiven_NoChannel(bytes32 channelId) external {
        bytes memory payees = signed(channelId, 5, 1);
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        submit(channelId, 5, 1, payees);
    }

    function test_RevertGiven_NonceUsedHere(uint256 nonce) external {
        bytes32 channelId = open();
        submit(channelId, 5, nonce, signed(channelId, 5, nonce));
        bytes memory again = signed(channelId, 6, nonce);
        vm.expectRevert(ISessionEscrow.NonceAlreadyUsed.selector);
        submit(channelId, 6, nonce, again);
    }

    function test_RevertGiven_NonceUsedThere(uint256 nonce) external {
        bytes32 channelId = open();
        bytes memory other = authorize(payee, "Close", channelId, 5, nonce, deadline);
        escrow.closeWithAuthorization(
            channelId, 5, nonce, deadline, other, voucher(payer, channelId, 5)
        );
        bytes memory again = signed(channelId, 6, nonce);
        vm.expectRevert(ISessionEscrow.NonceAlreadyUsed.selector);
        submit(channelId, 6, nonce, again);
    }

    function test_RevertWhen_AFieldDiffers(uint128 amount, uint256 nonce, uint256 later) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        later = bound(later, deadline + 1, type(uint256).max);
        vm.assume(amount != 5 && nonce != 1);
        bytes32 channelId = open();
        bytes32 other = open("other", address(0));
        bytes memory payees = signed(channelId, 5, 1);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(other, 5, 1, payees);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(channelId, amount, 1, payees);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(channelId, 5, nonce, payees);
        deadline = later;
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        submit(channelId, 5, 1, payees);
    }

    function test_RevertWhen_NotThePayeeForThis() external {
        bytes32 channelId = open();
        bytes[3] memory wrong = [
            authorize(payer, "Settle", channelId, 5, 1, deadline),
            authorize(payee, "Close", channelId, 5, 1, deadline),
            voucher(payee, channelId, 5)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
            submit(channelId, 5, 1, wrong[i]);
        }
    }

    function test_RevertWhen_SettleWouldRefuse() external {
        bytes32 channelId = open();
        bytes memory payees = signed(channelId, DEPOSIT + 1, 1);
        vm.expectRevert(ISessionEscrow.AmountExceedsDeposit.selector);
        submit(channelId, DEPOSIT + 1, 1, payees);
        payees = signed(channelId, 5, 1);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settleWithAuthorization(channelId, 5, 1, deadline, payees, "");
        assertFalse(escrow.isNonceUsed(payee.addr, channelId, 1));
        channelId = finalizedChannel();
        payees = signed(channelId, 5, 1);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        submit(channelId, 5, 1, payees);
    }

    function test_SettlesForThePayee(uint128 amount, uint256 nonce, uint256 wait) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        bytes memory payees = signed(channelId, amount, nonce);
        skip(bound(wait, 0, 1 hours));
        submit(channelId, amount, nonce, payees);
        assertEq(token.balanceOf(payee.addr), PLENTY + amount);
        assertEq(escrow.getChannel(channelId).finalized, false);
        assertTrue(escrow.isNonceUsed(payee.addr, channelId, nonce));
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-02, CONTRACT-08.
contract SettleTest is Base {
    uint256 private constant N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function test_RevertGiven_NoChannel(bytes32 channelId, uint128 amount) external {
        vm.expectRevert(ISessionEscrow.ChannelNotFound.selector);
        escrow.settle(channelId, amount, "");
    }

    function test_RevertGiven_Finalized() external {
        bytes32 channelId = finalizedChannel();
        bytes memory signature = voucher(payer, channelId, 1);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.settle(channelId, 1, signature);
    }

    function test_RevertWhen_NotPayee(address caller) external {
        vm.assume(caller != payee.addr);
        bytes32 channelId = open();
        bytes memory signature = voucher(payer, channelId, 1);
        vm.prank(caller);
        vm.expectRevert(ISessionEscrow.NotPayee.selector);
        escrow.settle(channelId, 1, signature);
    }

    function test_RevertWhen_NotIncreasing(uint128 settled, uint128 amount) external {
        settled = uint128(bound(settled, 1, DEPOSIT));
        amount = uint128(bound(amount, 0, settled));
        bytes32 channelId = open();
        settleAs(payee, channelId, settled);
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.AmountNotIncreasing.selector);
        escrow.settle(channelId, amount, signature);
    }

    function test_RevertWhen_AboveDeposit(uint128 amount) external {
        amount = uint128(bound(amount, uint256(DEPOSIT) + 1, type(uint128).max));
        bytes32 channelId = open();
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.AmountExceedsDeposit.selector);
        escrow.settle(channelId, amount, signature);
    }

    function test_RevertWhen_NotSigner(uint256 key, uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        Person memory forger;
        forger.key = bound(key, 1, N - 1);
        vm.assume(vm.addr(forger.key) != payer.addr);
        bytes32 channelId = open();
        bytes memory signature = voucher(forger, channelId, amount);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settle(channelId, amount, signature);
    }

    function test_RevertWhen_Malleable(uint128 amount, bytes calldata tail) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        bytes32 digest = typed(voucherHash(channelId, amount));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(payer.key, digest);
        bytes[5] memory wrong = [
            abi.encodePacked(r, bytes32(N - uint256(s)), uint8(55 - v)),
            abi.encodePacked(r, s, uint8(v - 27)),
            abi.encodePacked(r, bytes32(uint256(s) | uint256(v - 27) << 255)),
            abi.encodePacked(r, s, v, tail, hex"00"),
            abi.encodePacked(r, s)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            vm.prank(payee.addr);
            vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
            escrow.settle(channelId, amount, wrong[i]);
        }
    }

    function test_PaysTheDifference(uint128 first, uint128 second) external {
        first = uint128(bound(first, 1, DEPOSIT - 1));
        second = uint128(bound(second, first + 1, DEPOSIT));
        bytes32 channelId = open();
        settleAs(payee, channelId, first);
        bytes memory signature = voucher(payer, channelId, second);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.Settled(
            channelId, payer.addr, payee.addr, second, second - first, second
        );
        vm.prank(payee.addr);
        escrow.settle(channelId, second, signature);
        assertEq(token.balanceOf(payee.addr), PLENTY + second);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT - second);
        assertEq(escrow.getChannel(channelId).settled, second);
    }

    function test_TakesTheAuthorizedSigner(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open(0, signer.addr);
        bytes memory payers = voucher(payer, channelId, amount);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settle(channelId, amount, payers);
        bytes memory signature = voucher(signer, channelId, amount);
        vm.prank(payee.addr);
        escrow.settle(channelId, amount, signature);
        assertEq(escrow.getChannel(channelId).settled, amount);
    }

    function test_WhileCloseIsPending(uint256 wait) external {
        bytes32 channelId = open(0, address(0));
        requestClose(channelId);
        skip(bound(wait, 0, 365 days));
        uint64 askedAt = escrow.getChannel(channelId).closeRequestedAt;
        settleAs(payee, channelId, 5);
        assertEq(escrow.getChannel(channelId).closeRequestedAt, askedAt);
        assertEq(token.balanceOf(payee.addr), PLENTY + 5);
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev SEC-02, SEC-03, SEC-04, F-23, F-34.
contract ReplayTest is Base {
    function test_AcrossEscrows(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        bytes32 separator = domain(block.chainid, address(0xbeef));
        bytes memory foreign = sign(payer, typed(separator, voucherHash(channelId, amount)));
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settle(channelId, amount, foreign);
    }

    function test_AcrossChains(uint64 chainId) external {
        vm.assume(chainId != block.chainid && chainId != 0);
        bytes32 channelId = open();
        bytes memory signature = voucher(payer, channelId, 5);
        bytes32 before = idOf(payer.addr, payee.addr, "new", address(0));
        vm.chainId(chainId);
        vm.prank(payee.addr);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settle(channelId, 5, signature);
        assertEq(escrow.domainSeparator(), domain(chainId, address(escrow)));
        assertNotEq(open("new", address(0)), before);
        settleAs(payee, channelId, 5);
    }

    function test_AfterClose(uint128 amount) external {
        amount = uint128(bound(amount, 1, DEPOSIT));
        bytes32 channelId = open();
        bytes memory higher = voucher(payer, channelId, DEPOSIT);
        bytes memory signature = voucher(payer, channelId, amount);
        vm.startPrank(payee.addr);
        escrow.close(channelId, amount, signature);
        vm.expectRevert(ISessionEscrow.ChannelFinalized.selector);
        escrow.close(channelId, DEPOSIT, higher);
        vm.stopPrank();
        vm.prank(payer.addr);
        vm.expectRevert(ISessionEscrow.ChannelAlreadyExists.selector);
        escrow.open(payee.addr, address(token), DEPOSIT, 0, address(0));
    }

    function test_AcrossKinds(uint256 nonce) external {
        // Payer and payee are one person here, so that only the kind can make the difference.
        vm.prank(payee.addr);
        bytes32 channelId = escrow.open(payee.addr, address(token), DEPOSIT, 0, address(0));
        uint256 deadline = block.timestamp;
        bytes memory asVoucher = voucher(payee, channelId, 5);
        bytes memory asSettle = authorize(payee, "Settle", channelId, 5, nonce, deadline);
        bytes memory asClose = authorize(payee, "Close", channelId, 5, nonce, deadline);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settleWithAuthorization(channelId, 5, nonce, deadline, asVoucher, asVoucher);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settleWithAuthorization(channelId, 5, nonce, deadline, asClose, asVoucher);
        vm.expectRevert(ISessionEscrow.InvalidSignature.selector);
        escrow.settleWithAuthorization(channelId, 5, nonce, deadline, asSettle, asSettle);
        escrow.settleWithAuthorization(channelId, 5, nonce, deadline, asSettle, asVoucher);
        assertEq(escrow.getChannel(channelId).settled, 5);
    }
}

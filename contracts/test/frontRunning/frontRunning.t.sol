// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev AMB-10, F-83.
contract FrontRunningTest is Base {
    /// @dev The copy goes through; the original then reverts and changes nothing.
    function race(bytes memory callData) private {
        vm.prank(stranger.addr);
        (bool copied,) = address(escrow).call(callData);
        assertTrue(copied);
        bytes32 channelId = idOf(payer.addr, payee.addr, 0, address(0));
        bytes32 before = keccak256(abi.encode(escrow.getChannel(channelId)));
        uint256 held = token.balanceOf(address(escrow));
        vm.prank(signer.addr);
        (bool again,) = address(escrow).call(callData);
        assertFalse(again);
        assertEq(keccak256(abi.encode(escrow.getChannel(channelId))), before);
        assertEq(token.balanceOf(address(escrow)), held);
        assertEq(token.balanceOf(stranger.addr), PLENTY);
    }

    function channel() private view returns (ISessionEscrow.Channel memory) {
        return escrow.getChannel(idOf(payer.addr, payee.addr, 0, address(0)));
    }

    function test_OpenWithAuthorization() external {
        bytes32 nonce = openNonce(payer.addr, payee.addr, 0, address(0));
        Authorization memory a = authorization(payer, DEPOSIT, nonce);
        race(
            abi.encodeCall(
                escrow.openWithAuthorization,
                (
                    payee.addr,
                    address(token),
                    DEPOSIT,
                    0,
                    address(0),
                    a.from,
                    a.validAfter,
                    a.validBefore,
                    a.nonce,
                    a.signature
                )
            )
        );
        assertEq(channel().payer, payer.addr);
        assertEq(channel().deposit, DEPOSIT);
    }

    function test_OpenWithPermit2() external {
        Permit memory p = openPermit(payer, DEPOSIT, payee.addr, 0, address(0), 1);
        race(
            abi.encodeCall(
                escrow.openWithPermit2,
                (
                    payee.addr,
                    address(token),
                    DEPOSIT,
                    0,
                    address(0),
                    p.from,
                    p.nonce,
                    p.deadline,
                    p.signature
                )
            )
        );
        assertEq(channel().payer, payer.addr);
        assertEq(channel().deposit, DEPOSIT);
    }

    function test_TopUpWithAuthorization() external {
        bytes32 channelId = open();
        Authorization memory a =
            authorization(payer, 7, topUpNonce(channelId, 7, payer.addr, "salt"));
        race(
            abi.encodeCall(
                escrow.topUpWithAuthorization,
                (channelId, 7, a.from, "salt", a.validAfter, a.validBefore, a.nonce, a.signature)
            )
        );
        assertEq(channel().deposit, DEPOSIT + 7);
    }

    function test_TopUpWithPermit2() external {
        bytes32 channelId = open();
        Permit memory p = topUpPermit(payer, 7, channelId, 1);
        race(
            abi.encodeCall(
                escrow.topUpWithPermit2, (channelId, 7, p.from, p.nonce, p.deadline, p.signature)
            )
        );
        assertEq(channel().deposit, DEPOSIT + 7);
    }

    function test_SettleWithAuthorization() external {
        bytes32 channelId = open();
        bytes memory payees = authorize(payee, "Settle", channelId, 5, 1, block.timestamp);
        bytes memory signature = voucher(payer, channelId, 5);
        race(
            abi.encodeCall(
                escrow.settleWithAuthorization,
                (channelId, 5, 1, block.timestamp, payees, signature)
            )
        );
        assertEq(token.balanceOf(payee.addr), PLENTY + 5);
    }

    function test_CloseWithAuthorization() external {
        bytes32 channelId = open();
        bytes memory payees = authorize(payee, "Close", channelId, 5, 1, block.timestamp);
        bytes memory signature = voucher(payer, channelId, 5);
        race(
            abi.encodeCall(
                escrow.closeWithAuthorization, (channelId, 5, 1, block.timestamp, payees, signature)
            )
        );
        assertEq(token.balanceOf(payee.addr), PLENTY + 5);
        assertEq(token.balanceOf(payer.addr), PLENTY - 5);
    }

    function test_SettleBatchWithAuthorization() external {
        ISessionEscrow.BatchEntry[] memory entries = one(entry(payer, open(), 5));
        bytes memory payees =
            authorizeBatch(payee, "Settle", payee.addr, entries, 1, block.timestamp);
        race(
            abi.encodeCall(
                escrow.settleBatchWithAuthorization,
                (payee.addr, entries, 1, block.timestamp, payees)
            )
        );
        assertEq(token.balanceOf(payee.addr), PLENTY + 5);
    }

    function test_CloseBatchWithAuthorization() external {
        ISessionEscrow.BatchEntry[] memory entries = one(entry(payer, open(), 5));
        bytes memory payees =
            authorizeBatch(payee, "Close", payee.addr, entries, 1, block.timestamp);
        race(
            abi.encodeCall(
                escrow.closeBatchWithAuthorization,
                (payee.addr, entries, 1, block.timestamp, payees)
            )
        );
        assertEq(token.balanceOf(payee.addr), PLENTY + 5);
        assertEq(token.balanceOf(payer.addr), PLENTY - 5);
    }

    function test_ThePayeesOwnSettleFirst() external {
        bytes32 channelId = open();
        bytes memory payees = authorize(payee, "Settle", channelId, 5, 1, block.timestamp);
        bytes memory signature = voucher(payer, channelId, 5);
        settleAs(payee, channelId, 5);
        vm.expectRevert(ISessionEscrow.AmountNotIncreasing.selector);
        escrow.settleWithAuthorization(channelId, 5, 1, block.timestamp, payees, signature);
        assertFalse(escrow.isNonceUsed(payee.addr, channelId, 1));
    }
}

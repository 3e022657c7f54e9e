// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {IDevUSD} from "../IDevUSD.sol";
import {FalseToken, FeeToken, HookToken, PickyToken, SilentToken} from "../mocks/HostileTokens.sol";

/// @dev CONTRACT-11, CONTRACT-12, F-85, F-86, F-89.
contract HostileTest is Base {
    /// @dev Moves everyone to `other` and an escrow of its own.
    function use(address other) private {
        token = IDevUSD(other);
        escrow = ISessionEscrow(factory.createEscrow(other));
        address[2] memory holders = [payer.addr, stranger.addr];
        for (uint256 i = 0; i < holders.length; ++i) {
            token.mint(holders[i], PLENTY);
            vm.prank(holders[i]);
            (bool approved,) =
                other.call(abi.encodeCall(IERC20.approve, (address(escrow), type(uint256).max)));
            require(approved);
        }
    }

    function test_FeeToken(uint128 deposit) external {
        deposit = uint128(bound(deposit, 100, type(uint88).max));
        use(address(new FeeToken()));
        vm.prank(payer.addr);
        vm.expectRevert(
            abi.encodeWithSelector(
                ISessionEscrow.DepositNotReceived.selector, deposit, deposit - deposit / 100
            )
        );
        escrow.open(payee.addr, address(token), deposit, 0, address(0));
    }

    function test_SilentToken(uint128 amount) external {
        amount = uint128(bound(amount, 2, DEPOSIT - 1));
        use(address(new SilentToken()));
        bytes32 channelId = open();
        settleAs(payee, channelId, amount - 1);
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(payee.addr);
        escrow.close(channelId, amount, signature);
        assertEq(token.balanceOf(payee.addr), amount);
        assertEq(token.balanceOf(payer.addr), PLENTY - amount);
    }

    function test_FalseTokenDeposit() external {
        FalseToken refusing = new FalseToken();
        use(address(refusing));
        refusing.refuse(payer.addr, true);
        vm.prank(payer.addr);
        vm.expectRevert();
        escrow.open(payee.addr, address(token), DEPOSIT, 0, address(0));
    }

    function test_FalseTokenPayee() external {
        FalseToken refusing = new FalseToken();
        use(address(refusing));
        bytes32 channelId = open();
        refusing.refuse(payee.addr, true);
        bytes memory signature = voucher(payer, channelId, 5);
        vm.prank(payee.addr);
        vm.expectRevert();
        escrow.settle(channelId, 5, signature);
    }

    function test_FalseTokenRefund() external {
        FalseToken refusing = new FalseToken();
        use(address(refusing));
        bytes32 channelId = open();
        refusing.refuse(payer.addr, true);
        bytes memory signature = voucher(payer, channelId, 5);
        vm.prank(payee.addr);
        escrow.close(channelId, 5, signature);
        assertEq(escrow.claimable(payer.addr), DEPOSIT - 5);
        assertEq(token.balanceOf(payee.addr), 5);
    }

    function test_RefusedRefunds(uint8 mode, bool inBatch) external {
        PickyToken picky = new PickyToken();
        use(address(picky));
        bytes32 channelId = open();
        bytes32 other = openBy(stranger.addr, 0, address(0));
        picky.setMode(payer.addr, PickyToken.Mode(bound(mode, 1, 4)));
        ISessionEscrow.BatchEntry[] memory entries = new ISessionEscrow.BatchEntry[](2);
        entries[0] = entry(payer, channelId, 5);
        entries[1] = entry(stranger, other, 7);
        vm.startPrank(payee.addr);
        if (inBatch) {
            escrow.closeBatch(entries);
        } else {
            escrow.close(channelId, 5, entries[0].signature);
            escrow.close(other, 7, entries[1].signature);
        }
        assertEq(escrow.claimable(payer.addr), DEPOSIT - 5);
        assertEq(token.balanceOf(payee.addr), 12);
        assertEq(token.balanceOf(stranger.addr), PLENTY - 7);
    }

    function test_ABurntRefundCostsItsCap() external {
        PickyToken picky = new PickyToken();
        use(address(picky));
        bytes32 channelId = open();
        picky.setMode(payer.addr, PickyToken.Mode.BurnGas);
        uint256 before = gasleft();
        vm.prank(payee.addr);
        escrow.close(channelId, 0, "");
        assertLt(before - gasleft(), escrow.REFUND_GAS_CAP() + 100_000);
        assertEq(escrow.claimable(payer.addr), DEPOSIT);
    }

    /// @dev Every state-changing function, as a call that would succeed at another time.
    function everyCall(bytes32 channelId) private view returns (bytes[] memory calls) {
        ISessionEscrow.BatchEntry[] memory entries = one(entry(payer, channelId, 5));
        bytes memory signature = entries[0].signature;
        calls = new bytes[](17);
        calls[0] =
            abi.encodeCall(escrow.open, (payee.addr, address(token), 1, "reentered", address(0)));
        calls[1] = abi.encodeCall(escrow.topUp, (channelId, 1));
        calls[2] = abi.encodeCall(escrow.requestClose, (channelId));
        calls[3] = abi.encodeCall(escrow.withdraw, (channelId));
        calls[4] = abi.encodeCall(escrow.claimRefund, (payer.addr));
        calls[5] = abi.encodeCall(escrow.settle, (channelId, 5, signature));
        calls[6] = abi.encodeCall(escrow.close, (channelId, 5, signature));
        calls[7] = abi.encodeCall(escrow.settleBatch, (entries));
        calls[8] = abi.encodeCall(escrow.closeBatch, (entries));
        bytes32 nonce = openNonce(payer.addr, payee.addr, 0, address(0));
        calls[9] = abi.encodeCall(
            escrow.openWithAuthorization,
            (payee.addr, address(token), 1, 0, address(0), payer.addr, 0, 0, nonce, "")
        );
        calls[10] = abi.encodeCall(
            escrow.openWithPermit2,
            (payee.addr, address(token), 1, 0, address(0), payer.addr, 0, 0, "")
        );
        nonce = topUpNonce(channelId, 1, payer.addr, 0);
        calls[11] = abi.encodeCall(
            escrow.topUpWithAuthorization, (channelId, 1, payer.addr, 0, 0, 0, nonce, "")
        );
        calls[12] = abi.encodeCall(escrow.topUpWithPermit2, (channelId, 1, payer.addr, 0, 0, ""));
        uint256 deadline = block.timestamp;
        calls[13] = abi.encodeCall(
            escrow.settleWithAuthorization,
            (
                channelId,
                5,
                1,
                deadline,
                authorize(payee, "Settle", channelId, 5, 1, deadline),
                signature
            )
        );
        calls[14] = abi.encodeCall(
            escrow.closeWithAuthorization,
            (
                channelId,
                5,
                1,
                deadline,
                authorize(payee, "Close", channelId, 5, 1, deadline),
                signature
            )
        );
        calls[15] = abi.encodeCall(
            escrow.settleBatchWithAuthorization,
            (
                payee.addr,
                entries,
                1,
                deadline,
                authorizeBatch(payee, "Settle", payee.addr, entries, 1, deadline)
            )
        );
        calls[16] = abi.encodeCall(
            escrow.closeBatchWithAuthorization,
            (
                payee.addr,
                entries,
                1,
                deadline,
                authorizeBatch(payee, "Close", payee.addr, entries, 1, deadline)
            )
        );
    }

    function expectRefused(HookToken hooked) private view {
        assertTrue(hooked.tried(), "the token called back");
        assertFalse(hooked.succeeded());
        assertEq(
            bytes4(hooked.answer()), ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector
        );
    }

    function test_Reentrancy(uint256 which) external {
        HookToken hooked = new HookToken();
        use(address(hooked));
        bytes32 channelId = open();
        bytes[] memory calls = everyCall(channelId);
        bytes memory inner = calls[bound(which, 0, calls.length - 1)];

        // While money comes in.
        hooked.arm(address(escrow), inner);
        vm.prank(payer.addr);
        escrow.topUp(channelId, 1);
        expectRefused(hooked);

        // While money goes out to the payee, then to both, then in a batch, then to the payer.
        hooked.arm(address(escrow), inner);
        settleAs(payee, channelId, 3);
        expectRefused(hooked);
        bytes32 second = open("second", address(0));
        bytes32 third = open("third", address(0));
        bytes32 fourth = open("fourth", address(0));
        hooked.arm(address(escrow), inner);
        ISessionEscrow.BatchEntry[] memory entries = one(entry(payer, second, 9));
        vm.startPrank(payee.addr);
        escrow.settleBatch(entries);
        expectRefused(hooked);
        hooked.arm(address(escrow), inner);
        escrow.close(second, 9, "");
        expectRefused(hooked);
        hooked.arm(address(escrow), inner);
        escrow.closeBatch(one(ISessionEscrow.BatchEntry(third, 0, "")));
        expectRefused(hooked);
        vm.stopPrank();
        requestClose(fourth);
        skip(GRACE);
        hooked.arm(address(escrow), inner);
        vm.prank(payer.addr);
        escrow.withdraw(fourth);
        expectRefused(hooked);
        assertEq(token.balanceOf(address(escrow)), DEPOSIT + 1 - 3);
    }

    function test_GuardIsPerCall() external {
        // Two calls in one transaction are no reentrancy: the guard is put down after each.
        bytes32 channelId = open();
        settleAs(payee, channelId, 1);
        settleAs(payee, channelId, 2);
        assertEq(escrow.getChannel(channelId).settled, 2);
    }
}

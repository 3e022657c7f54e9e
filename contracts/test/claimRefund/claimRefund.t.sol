// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev F-86.
contract ClaimRefundTest is Base {
    function hold() private {
        bytes32 first = open("first", address(0));
        bytes32 second = open("second", address(0));
        token.blacklist(payer.addr);
        vm.startPrank(payee.addr);
        escrow.close(first, 0, "");
        escrow.close(second, 0, "");
        vm.stopPrank();
    }

    function test_RevertGiven_Nothing(address anyone) external {
        vm.expectRevert(ISessionEscrow.NothingToClaim.selector);
        escrow.claimRefund(anyone);
    }

    function test_RevertGiven_StillRefused() external {
        hold();
        vm.expectRevert();
        escrow.claimRefund(payer.addr);
        assertEq(escrow.claimable(payer.addr), 2 * DEPOSIT);
    }

    function test_PaysThePayer(address caller) external {
        hold();
        token.unBlacklist(payer.addr);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.RefundClaimed(payer.addr, 2 * DEPOSIT);
        vm.prank(caller);
        escrow.claimRefund(payer.addr);
        assertEq(token.balanceOf(payer.addr), PLENTY);
    }

    function test_PaysOnce() external {
        hold();
        token.unBlacklist(payer.addr);
        open("another", address(0));
        escrow.claimRefund(payer.addr);
        vm.expectRevert(ISessionEscrow.NothingToClaim.selector);
        escrow.claimRefund(payer.addr);
    }
}

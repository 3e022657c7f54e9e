// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {IDevUSD} from "../IDevUSD.sol";
import {Handler} from "./Handler.t.sol";

/// @dev The handler's books against the escrows: sums after every call, the channel that was
/// touched inside the handler, and every channel once more at the end of each run (ACC-07, F-62).
contract InvariantsTest is Test {
    Handler private handler;

    function setUp() external {
        handler = new Handler();
        handler.setUp();
        bytes4[] memory selectors = new bytes4[](11);
        selectors[0] = Handler.open.selector;
        selectors[1] = Handler.topUp.selector;
        selectors[2] = Handler.settle.selector;
        selectors[3] = Handler.close.selector;
        selectors[4] = Handler.batch.selector;
        selectors[5] = Handler.requestClose.selector;
        selectors[6] = Handler.withdraw.selector;
        selectors[7] = Handler.claimRefund.selector;
        selectors[8] = Handler.ban.selector;
        selectors[9] = Handler.pass.selector;
        selectors[10] = Handler.attack.selector;
        targetSelector(FuzzSelector(address(handler), selectors));
        targetContract(address(handler));
    }

    /// @dev One campaign for all of them: five would play the same calls five times.
    function invariant_booksAndEscrowsAgree() external view {
        escrowHoldsExactlyWhatItOwes();
        heldRefundsAreClaimable();
        touchedChannelsAreWhatTheBooksSay();
        onlyThePayerTakesItsExitBack();
        nothingIsTakenTwiceOrByStrangers();
        everyUnitIsAccountedFor();
    }

    function escrowHoldsExactlyWhatItOwes() private view {
        for (uint256 w = 0; w < 2; ++w) {
            (IDevUSD token, ISessionEscrow escrow, uint256 deposited, uint256 paid, uint256 back,) =
                handler.worlds(w);
            assertEq(token.balanceOf(address(escrow)), deposited - paid - back);
        }
    }

    function heldRefundsAreClaimable() private view {
        for (uint256 w = 0; w < 2; ++w) {
            (, ISessionEscrow escrow,,,, uint256 claimable) = handler.worlds(w);
            uint256 sum;
            for (uint256 i = 0; i < 4; ++i) {
                sum += escrow.claimable(handler.payerAt(i));
            }
            assertEq(sum, claimable);
        }
    }

    function touchedChannelsAreWhatTheBooksSay() private view {
        // Settled never exceeds the deposit or the greatest voucher signed, a finalized channel
        // never changes, and only the payer cancels a pending close.
        assertEq(handler.astray(), 0);
    }

    /// @dev O-29: no settle, close or top-up that another sends ends a close request.
    function onlyThePayerTakesItsExitBack() private view {
        assertEq(handler.exitsTaken(), 0);
    }

    function nothingIsTakenTwiceOrByStrangers() private view {
        assertEq(handler.broken(), 0);
    }

    function everyUnitIsAccountedFor() private view {
        for (uint256 w = 0; w < 2; ++w) {
            (IDevUSD token, ISessionEscrow escrow, uint256 deposited, uint256 paid, uint256 back,) =
                handler.worlds(w);
            uint256 elsewhere = token.totalSupply() - token.balanceOf(address(escrow));
            assertEq(elsewhere, handler.minted(w) - deposited + paid + back);
        }
    }

    /// @dev Each run ends with a sweep of all channels: what is open and held is what is there.
    function afterInvariant() external {
        uint256[2] memory owed;
        for (uint256 i = 0; i < handler.channels(); ++i) {
            bytes32 channelId = handler.channelIds(i);
            handler.verify(channelId);
            Handler.Book memory b = handler.book(channelId);
            if (!b.finalized) owed[b.world] += b.deposited - b.paid;
        }
        assertEq(handler.astray(), 0);
        assertEq(handler.exitsTaken(), 0);
        for (uint256 w = 0; w < 2; ++w) {
            (IDevUSD token, ISessionEscrow escrow,,,, uint256 claimable) = handler.worlds(w);
            assertEq(token.balanceOf(address(escrow)), owed[w] + claimable);
        }
    }
}

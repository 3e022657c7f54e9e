// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-10, AMB-10, F-83.
contract OpenWithPermit2Test is Base {
    function submit(address payee_, uint128 deposit, bytes32 salt, address signer_, Permit memory p)
        private
        returns (bytes32)
    {
        vm.prank(stranger.addr);
        return escrow.openWithPermit2(
            payee_, address(token), deposit, salt, signer_, p.from, p.nonce, p.deadline, p.signature
        );
    }

    function test_RevertWhen_ARelayerChangesATerm(address other, bytes32 salt, uint128 deposit)
        external
    {
        deposit = uint128(bound(deposit, 1, type(uint88).max));
        vm.assume(other != payee.addr && other != address(0) && salt != 0 && deposit != DEPOSIT);
        Permit memory p = openPermit(payer, DEPOSIT, payee.addr, 0, address(0), 1);
        vm.expectRevert();
        submit(other, DEPOSIT, 0, address(0), p);
        vm.expectRevert();
        submit(payee.addr, deposit, 0, address(0), p);
        vm.expectRevert();
        submit(payee.addr, DEPOSIT, salt, address(0), p);
        vm.expectRevert();
        submit(payee.addr, DEPOSIT, 0, other, p);
        p.from = stranger.addr;
        vm.expectRevert();
        submit(payee.addr, DEPOSIT, 0, address(0), p);
        assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_RevertWhen_TermsAreNotOpens() external {
        Permit memory p = openPermit(payer, 0, payee.addr, 0, address(0), 1);
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        submit(payee.addr, 0, 0, address(0), p);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        submit(payee.addr, uint128(type(uint88).max) + 1, 0, address(0), p);
        vm.expectRevert(ISessionEscrow.InvalidPayee.selector);
        submit(address(0), DEPOSIT, 0, address(0), p);
    }

    function test_RevertWhen_Late() external {
        Permit memory p = openPermit(payer, DEPOSIT, payee.addr, 0, address(0), 1);
        vm.warp(p.deadline + 1);
        vm.expectRevert();
        submit(payee.addr, DEPOSIT, 0, address(0), p);
    }

    function test_RevertGiven_NonceUsed(uint256 nonce) external {
        Permit memory p = openPermit(payer, DEPOSIT, payee.addr, 0, address(0), nonce);
        submit(payee.addr, DEPOSIT, 0, address(0), p);
        p = openPermit(payer, DEPOSIT, payee.addr, "other", address(0), nonce);
        vm.expectRevert();
        submit(payee.addr, DEPOSIT, "other", address(0), p);
    }

    function test_GivenOvertaken() external {
        Permit memory p = openPermit(payer, DEPOSIT, payee.addr, 0, address(0), 1);
        bytes32 channelId = submit(payee.addr, DEPOSIT, 0, address(0), p);
        vm.expectRevert(ISessionEscrow.ChannelAlreadyExists.selector);
        submit(payee.addr, DEPOSIT, 0, address(0), p);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT);
    }

    function test_Opens(uint128 deposit, bytes32 salt, address signer_, uint256 nonce) external {
        deposit = uint128(bound(deposit, 1, type(uint88).max));
        Permit memory p = openPermit(payer, deposit, payee.addr, salt, signer_, nonce);
        bytes32 channelId = submit(payee.addr, deposit, salt, signer_, p);
        ISessionEscrow.Channel memory channel = escrow.getChannel(channelId);
        assertEq(channelId, idOf(payer.addr, payee.addr, salt, signer_));
        assertEq(channel.payer, payer.addr);
        assertEq(channel.authorizedSigner, signer_);
        assertEq(channel.deposit, deposit);
        assertEq(token.balanceOf(payer.addr), PLENTY - deposit);
    }
}

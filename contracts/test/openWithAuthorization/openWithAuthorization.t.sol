// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {IReceiveWithAuthorization} from "../../src/interfaces/IReceiveWithAuthorization.sol";
import {Base} from "../Base.t.sol";

/// @dev CONTRACT-09, AMB-10, F-83.
contract OpenWithAuthorizationTest is Base {
    function signed(uint128 deposit, bytes32 salt, address signer_)
        private
        view
        returns (Authorization memory)
    {
        return authorization(payer, deposit, openNonce(payer.addr, payee.addr, salt, signer_));
    }

    function submit(
        address payee_,
        address token_,
        uint128 deposit,
        bytes32 salt,
        address signer_,
        Authorization memory a
    ) private returns (bytes32) {
        vm.prank(stranger.addr);
        return escrow.openWithAuthorization(
            payee_,
            token_,
            deposit,
            salt,
            signer_,
            a.from,
            a.validAfter,
            a.validBefore,
            a.nonce,
            a.signature
        );
    }

    function test_RevertWhen_NonceIsAnother(bytes32 nonce, bytes32 salt) external {
        vm.assume(nonce != openNonce(payer.addr, payee.addr, salt, address(0)));
        Authorization memory a = authorization(payer, DEPOSIT, nonce);
        vm.expectCall(
            address(token),
            abi.encodeWithSelector(IReceiveWithAuthorization.receiveWithAuthorization.selector),
            0
        );
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(payee.addr, address(token), DEPOSIT, salt, address(0), a);
    }

    function test_RevertWhen_ARelayerChangesTheTerms(address other, bytes32 salt) external {
        vm.assume(other != payee.addr && other != address(0) && salt != 0);
        Authorization memory a = signed(DEPOSIT, 0, address(0));
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(other, address(token), DEPOSIT, 0, address(0), a);
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(payee.addr, address(token), DEPOSIT, salt, address(0), a);
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(payee.addr, address(token), DEPOSIT, 0, other, a);
        a.from = other;
        vm.expectRevert(ISessionEscrow.NonceMismatch.selector);
        submit(payee.addr, address(token), DEPOSIT, 0, address(0), a);
    }

    function test_RevertWhen_TermsAreNotOpens() external {
        Authorization memory a = signed(0, 0, address(0));
        vm.expectRevert(ISessionEscrow.ZeroDeposit.selector);
        submit(payee.addr, address(token), 0, 0, address(0), a);
        vm.expectRevert(ISessionEscrow.DepositOverflow.selector);
        submit(payee.addr, address(token), type(uint128).max, 0, address(0), a);
        a.nonce = openNonce(payer.addr, address(0), 0, address(0));
        vm.expectRevert(ISessionEscrow.InvalidPayee.selector);
        submit(address(0), address(token), DEPOSIT, 0, address(0), a);
    }

    function test_RevertWhen_AmountIsNotSigned(uint128 deposit) external {
        deposit = uint128(bound(deposit, 1, type(uint88).max));
        vm.assume(deposit != DEPOSIT);
        Authorization memory a = signed(DEPOSIT, 0, address(0));
        vm.expectRevert();
        submit(payee.addr, address(token), deposit, 0, address(0), a);
    }

    function test_RevertWhen_NotValidNow() external {
        bytes32 nonce = openNonce(payer.addr, payee.addr, 0, address(0));
        Authorization[2] memory wrong = [
            authorization(payer, DEPOSIT, nonce, block.timestamp, block.timestamp + 1),
            authorization(payer, DEPOSIT, nonce, 0, block.timestamp)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            vm.expectRevert();
            submit(payee.addr, address(token), DEPOSIT, 0, address(0), wrong[i]);
        }
    }

    function test_GivenOvertaken() external {
        Authorization memory a = signed(DEPOSIT, 0, address(0));
        bytes32 channelId = submit(payee.addr, address(token), DEPOSIT, 0, address(0), a);
        vm.expectRevert(ISessionEscrow.ChannelAlreadyExists.selector);
        submit(payee.addr, address(token), DEPOSIT, 0, address(0), a);
        assertEq(escrow.getChannel(channelId).deposit, DEPOSIT);
        assertEq(escrow.getChannel(channelId).settled, 0);
    }

    function test_Opens(uint128 deposit, bytes32 salt, address signer_) external {
        deposit = uint128(bound(deposit, 1, type(uint88).max));
        Authorization memory a = signed(deposit, salt, signer_);
        vm.expectEmit(address(escrow));
        emit ISessionEscrow.ChannelOpened(
            idOf(payer.addr, payee.addr, salt, signer_),
            payer.addr,
            payee.addr,
            address(token),
            signer_,
            salt,
            deposit
        );
        bytes32 channelId = submit(payee.addr, address(token), deposit, salt, signer_, a);
        assertEq(channelId, idOf(payer.addr, payee.addr, salt, signer_));
        assertEq(escrow.getChannel(channelId).payer, payer.addr);
        assertEq(token.balanceOf(payer.addr), PLENTY - deposit);
        assertEq(token.balanceOf(address(escrow)), deposit);
    }
}

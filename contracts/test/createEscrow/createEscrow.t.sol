// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IEscrowFactory} from "../../src/interfaces/IEscrowFactory.sol";
import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {PlainToken} from "../mocks/PlainToken.sol";

/// @dev F-91.
contract CreateEscrowTest is Base {
    function test_RevertWhen_NoCode(address nowhere) external {
        vm.assume(nowhere.code.length == 0);
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrow.InvalidToken.selector, nowhere));
        factory.createEscrow(nowhere);
    }

    function test_GivenItExists(address caller) external {
        vm.recordLogs();
        vm.prank(caller);
        assertEq(factory.createEscrow(address(token)), address(escrow));
        assertEq(vm.getRecordedLogs().length, 0);
    }

    function test_DeploysWhereComputed(address caller) external {
        address other = address(new PlainToken());
        address expected = factory.escrowOf(other);
        assertEq(expected.code.length, 0);
        vm.expectEmit(address(factory));
        emit IEscrowFactory.EscrowCreated(other, expected);
        vm.prank(caller);
        assertEq(factory.createEscrow(other), expected);
        assertEq(ISessionEscrow(expected).TOKEN(), other);
    }

    function test_KeepsTokensApart() external {
        PlainToken other = new PlainToken();
        ISessionEscrow second = ISessionEscrow(factory.createEscrow(address(other)));
        assertNotEq(address(second), address(escrow));
        assertNotEq(second.domainSeparator(), escrow.domainSeparator());
        vm.expectRevert(abi.encodeWithSelector(ISessionEscrow.InvalidToken.selector, token));
        second.open(payee.addr, address(token), 1, 0, address(0));
    }
}

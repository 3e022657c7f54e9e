// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ISessionEscrow} from "../../src/interfaces/ISessionEscrow.sol";
import {Base} from "../Base.t.sol";
import {IDevUSD} from "../IDevUSD.sol";

/// @dev Plays payers, payees, relayers and strangers over every function of two escrows, and keeps
/// its own books. Each action is one that must succeed, and fails the run if it does not; after
/// each, whatever may not be repeated is tried again.
contract Handler is Base {
    /// @dev What we know of a channel without asking the escrow.
    struct Book {
        uint256 world;
        Person payer;
        Person payee;
        Person signer;
        bool hasSigner;
        uint256 deposited;
        uint256 paid;
        uint256 returned;
        uint256 greatestSigned;
        uint256 closeRequestedAt;
        bool finalized;
    }

    struct World {
        IDevUSD token;
        ISessionEscrow escrow;
        uint256 deposited;
        uint256 paid;
        uint256 returned;
        uint256 claimable;
    }

    World[2] public worlds;
    bytes32[] public channelIds;
    mapping(bytes32 channelId => Book) internal books;
    Person[4] internal payers;
    Person[2] internal payees;
    Person internal sessionKey;
    mapping(uint256 world => mapping(address payer => uint256)) public heldFor;
    uint256[2] public minted;
    uint256 public nonces;
    /// @dev What should never have worked and did, and channels that were not what the books say.
    uint256 public broken;
    uint256 public astray;
    /// @dev Close requests that went away without a transaction of the payer's own (O-29).
    uint256 public exitsTaken;
    mapping(bytes32 channelId => uint256) private askedAt;

    function setUp() public override {
        super.setUp();
        sessionKey = person("session key");
        for (uint256 w = 0; w < worlds.length; ++w) {
            if (w == 1) {
                token = IDevUSD(deploy("DevUSD", abi.encode(address(this))));
                escrow = ISessionEscrow(factory.createEscrow(address(token)));
            }
            worlds[w].token = token;
            worlds[w].escrow = escrow;
            for (uint256 i = 0; i < payers.length; ++i) {
                payers[i] = person(string.concat("payer ", vm.toString(i)));
            }
            for (uint256 i = 0; i < payees.length; ++i) {
                payees[i] = person(string.concat("payee ", vm.toString(i)));
            }
            minted[w] = token.totalSupply();
        }
    }

    function channels() external view returns (uint256) {
        return channelIds.length;
    }

    function payerAt(uint256 i) external view returns (address) {
        return payers[i].addr;
    }

    function book(bytes32 channelId) external view returns (Book memory) {
        return books[channelId];
    }

    /*//////////////////////////////////////////////////////////////////////////
                                     DEPOSITS
    //////////////////////////////////////////////////////////////////////////*/

    function open(uint256 seed, uint256 rail, uint128 deposit) external {
        Book memory b;
        b.world = seed % 2;
        enter(b.world);
        b.payer = payers[(seed >> 8) % payers.length];
        b.payee = payees[(seed >> 16) % payees.length];
        b.hasSigner = (seed >> 24) % 2 == 1;
        b.signer = b.hasSigner ? sessionKey : b.payer;
        if (banned(b.payer.addr)) return;
        deposit = uint128(bound(deposit, 1, 1e24));
        bytes32 salt = bytes32(++nonces);
        address signer_ = b.hasSigner ? sessionKey.addr : address(0);
        bytes32 channelId = openBy(b, rail % 3, deposit, salt, signer_);
        require(channelId == idOf(b.payer.addr, b.payee.addr, salt, signer_), "another id");
        b.deposited = deposit;
        worlds[b.world].deposited += deposit;
        books[channelId] = b;
        channelIds.push(channelId);
        verify(channelId);
    }

    function openBy(Book memory b, uint256 rail, uint128 deposit, bytes32 salt, address signer_)
        private
        returns (bytes32)
    {
        if (rail == 0) {
            vm.prank(b.payer.addr);
            return escrow.open(b.payee.addr, address(token), deposit, salt, signer_);
        }
        if (rail == 1) {
            Permit memory p =
                openPermit(b.payer, deposit, b.payee.addr, salt, signer_, uint256(salt));
            return escrow.openWithPermit2(
                b.payee.addr,
                address(token),
                deposit,
                salt,
                signer_,
                p.from,
                p.nonce,
                p.deadline,
                p.signature
            );
        }
        Authorization memory a =
            authorization(b.payer, deposit, openNonce(b.payer.addr, b.payee.addr, salt, signer_));
        return escrow.openWithAuthorization(
            b.payee.addr,
            address(token),
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

    function topUp(uint256 seed, uint256 rail, uint128 amount) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0 || b.finalized) return;
        amount = uint128(bound(amount, 1, 1e20));
        // The core function is the payer's alone; the relayed ones take anybody's money from anybody.
        Person memory funder = rail % 3 == 0 ? b.payer : payers[(seed >> 32) % payers.length];
        if (banned(funder.addr)) return;
        bytes memory call = topUpCall(channelId, rail % 3, amount, funder);
        address[3] memory senders = [b.payer.addr, b.payee.addr, stranger.addr];
        address sender = rail % 3 == 0 ? b.payer.addr : senders[(seed >> 48) % senders.length];
        vm.prank(sender);
        must(call);
        if (sender == b.payer.addr) (b.closeRequestedAt, askedAt[channelId]) = (0, 0);
        b.deposited += amount;
        worlds[b.world].deposited += amount;
        if (rail % 3 != 0) mustNot(call);
        verify(channelId);
    }

    function topUpCall(bytes32 channelId, uint256 rail, uint128 amount, Person memory funder)
        private
        returns (bytes memory)
    {
        if (rail == 0) return abi.encodeCall(escrow.topUp, (channelId, amount));
        ++nonces;
        if (rail == 1) {
            Permit memory p = topUpPermit(funder, amount, channelId, nonces);
            return abi.encodeCall(
                escrow.topUpWithPermit2,
                (channelId, amount, p.from, p.nonce, p.deadline, p.signature)
            );
        }
        bytes32 salt = bytes32(nonces);
        Authorization memory a =
            authorization(funder, amount, topUpNonce(channelId, amount, funder.addr, salt));
        return abi.encodeCall(
            escrow.topUpWithAuthorization,
            (channelId, amount, a.from, salt, a.validAfter, a.validBefore, a.nonce, a.signature)
        );
    }

    /*//////////////////////////////////////////////////////////////////////////
                                     PAYOUTS
    //////////////////////////////////////////////////////////////////////////*/

    function settle(uint256 seed, bool relayed, uint128 amount) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0 || b.finalized || b.paid == b.deposited) return;
        amount = uint128(bound(amount, b.paid + 1, b.deposited));
        payOut(channelId, b, amount, relayed, false);
        verify(channelId);
    }

    function close(uint256 seed, bool relayed, uint128 amount) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0 || b.finalized || seed % 3 != 0) return;
        amount = uint128(bound(amount, 0, b.deposited));
        payOut(channelId, b, amount, relayed, true);
        verify(channelId);
    }

    function payOut(bytes32 channelId, Book storage b, uint128 amount, bool relayed, bool ends)
        private
    {
        bytes memory signature = amount > b.paid ? signedBy(b, channelId, amount) : bytes("");
        bytes memory call = ends
            ? abi.encodeCall(escrow.close, (channelId, amount, signature))
            : abi.encodeCall(escrow.settle, (channelId, amount, signature));
        if (relayed) {
            uint256 deadline = block.timestamp + 1;
            bytes memory payees_ = authorize(
                b.payee, ends ? "Close" : "Settle", channelId, amount, ++nonces, deadline
            );
            call = ends
                ? abi.encodeCall(
                    escrow.closeWithAuthorization,
                    (channelId, amount, nonces, deadline, payees_, signature)
                )
                : abi.encodeCall(
                    escrow.settleWithAuthorization,
                    (channelId, amount, nonces, deadline, payees_, signature)
                );
        } else {
            vm.prank(b.payee.addr);
        }
        must(call);
        record(b, amount, ends);
        if (!relayed) vm.prank(b.payee.addr);
        mustNot(call);
    }

    /// @dev Up to six channels of one payee in one batch, some of them bad on purpose.
    function batch(uint256 seed, bool relayed, bool ends) external {
        ends = ends && seed % 5 == 0; // else few channels would live long
        enter(seed % 2);
        Person memory to = payees[(seed >> 8) % payees.length];
        ISessionEscrow.BatchEntry[] memory entries = new ISessionEscrow.BatchEntry[](6);
        bytes32 last;
        for (uint256 i = 0; i < entries.length; ++i) {
            uint256 draw = uint256(keccak256(abi.encode(seed, i)));
            bytes32 channelId =
                channelIds.length == 0 ? bytes32(draw) : channelIds[draw % channelIds.length];
            Book storage b = books[channelId];
            uint128 amount = uint128(bound(draw >> 64, 0, b.deposited + b.deposited / 8));
            bool forged = (draw >> 32) % 4 == 0;
            Person memory by = forged ? stranger : b.signer;
            if (by.key == 0) by = stranger;
            if (!forged && b.world == seed % 2) noteSigned(b, amount);
            entries[i] = entry(by, channelId, amount);
            bool taken = b.deposited != 0 && b.world == seed % 2 && !b.finalized
                && b.payee.addr == to.addr && channelId != last
                && (amount > b.paid ? !forged && amount <= b.deposited : ends);
            if (taken) {
                record(b, amount, ends);
                last = channelId;
            } else {
                entries[i].signature = "";
                if (amount <= b.paid) entries[i].channelId = bytes32(draw);
            }
        }
        bytes memory call = ends
            ? abi.encodeCall(escrow.closeBatch, (entries))
            : abi.encodeCall(escrow.settleBatch, (entries));
        if (relayed) call = relayedBatch(to, entries, ends);
        else vm.prank(to.addr);
        must(call);
        if (relayed) mustNot(call);
        for (uint256 i = 0; i < entries.length; ++i) {
            if (books[entries[i].channelId].deposited != 0) verify(entries[i].channelId);
        }
    }

    function relayedBatch(Person memory to, ISessionEscrow.BatchEntry[] memory entries, bool ends)
        private
        returns (bytes memory)
    {
        uint256 deadline = block.timestamp + 1;
        bytes memory payees_ =
            authorizeBatch(to, ends ? "Close" : "Settle", to.addr, entries, ++nonces, deadline);
        return ends
            ? abi.encodeCall(
                escrow.closeBatchWithAuthorization, (to.addr, entries, nonces, deadline, payees_)
            )
            : abi.encodeCall(
                escrow.settleBatchWithAuthorization, (to.addr, entries, nonces, deadline, payees_)
            );
    }

    /*//////////////////////////////////////////////////////////////////////////
                                     THE EXIT
    //////////////////////////////////////////////////////////////////////////*/

    function requestClose(uint256 seed) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0 || b.finalized) return;
        vm.prank(b.payer.addr);
        escrow.requestClose(channelId);
        if (b.closeRequestedAt == 0) b.closeRequestedAt = block.timestamp;
        verify(channelId);
    }

    function withdraw(uint256 seed) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0 || b.finalized || b.closeRequestedAt == 0) return;
        bytes memory call = abi.encodeCall(escrow.withdraw, (channelId));
        bool early = block.timestamp < b.closeRequestedAt + GRACE;
        bool refused = b.deposited != b.paid && banned(b.payer.addr);
        vm.prank(b.payer.addr);
        if (early || refused) {
            mustNot(call);
            return;
        }
        must(call);
        b.finalized = true;
        b.returned = b.deposited - b.paid;
        worlds[b.world].returned += b.returned;
        vm.prank(b.payer.addr);
        mustNot(call);
        verify(channelId);
    }

    function claimRefund(uint256 seed) external {
        enter(seed % 2);
        Person memory to = payers[(seed >> 8) % payers.length];
        uint256 amount = heldFor[seed % 2][to.addr];
        bytes memory call = abi.encodeCall(escrow.claimRefund, (to.addr));
        if (amount == 0 || banned(to.addr)) {
            mustNot(call);
            return;
        }
        must(call);
        heldFor[seed % 2][to.addr] = 0;
        worlds[seed % 2].claimable -= amount;
        worlds[seed % 2].returned += amount;
    }

    /*//////////////////////////////////////////////////////////////////////////
                                    THE OTHERS
    //////////////////////////////////////////////////////////////////////////*/

    function ban(uint256 seed, bool on) external {
        enter(seed % 2);
        address account = payers[(seed >> 8) % payers.length].addr;
        if (on) token.blacklist(account);
        else token.unBlacklist(account);
    }

    function pass(uint256 time) external {
        skip(bound(time, 1, GRACE));
    }

    /// @dev A stranger tries everything with what is public; nothing may come of it.
    function attack(uint256 seed, uint128 amount) external {
        (bytes32 channelId, Book storage b) = pick(seed);
        if (channelId == 0) return;
        amount = uint128(bound(amount, 0, type(uint128).max));
        bytes memory forged = voucher(stranger, channelId, amount);
        bytes[7] memory calls = [
            abi.encodeCall(escrow.settle, (channelId, amount, forged)),
            abi.encodeCall(escrow.close, (channelId, 0, "")),
            abi.encodeCall(escrow.requestClose, (channelId)),
            abi.encodeCall(escrow.withdraw, (channelId)),
            abi.encodeCall(escrow.topUp, (channelId, 1)),
            abi.encodeCall(
                escrow.settleWithAuthorization,
                (channelId, amount, nonces, block.timestamp, forged, forged)
            ),
            abi.encodeCall(
                escrow.closeWithAuthorization, (channelId, 0, nonces, block.timestamp, forged, "")
            )
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            vm.prank(stranger.addr);
            mustNot(calls[i]);
        }
        if (!b.finalized && amount > b.paid) {
            vm.prank(b.payee.addr);
            mustNot(calls[0]);
        }
        verify(channelId);
    }

    /*//////////////////////////////////////////////////////////////////////////
                                      INSIDE
    //////////////////////////////////////////////////////////////////////////*/

    function enter(uint256 world) private {
        (token, escrow) = (worlds[world].token, worlds[world].escrow);
    }

    function pick(uint256 seed) private returns (bytes32 channelId, Book storage b) {
        if (channelIds.length != 0) channelId = channelIds[(seed >> 40) % channelIds.length];
        b = books[channelId];
        enter(b.world);
    }

    function banned(address account) private view returns (bool) {
        (, bytes memory answer) =
            address(token).staticcall(abi.encodeWithSignature("isBlacklisted(address)", account));
        return abi.decode(answer, (bool));
    }

    function noteSigned(Book storage b, uint128 amount) private {
        if (amount > b.greatestSigned) b.greatestSigned = amount;
    }

    function signedBy(Book storage b, bytes32 channelId, uint128 amount)
        private
        returns (bytes memory)
    {
        noteSigned(b, amount);
        return voucher(b.signer, channelId, amount);
    }

    function record(Book storage b, uint128 amount, bool ends) private {
        World storage world = worlds[b.world];
        if (amount > b.paid) {
            world.paid += amount - b.paid;
            b.paid = amount;
        }
        if (!ends) return;
        b.finalized = true;
        b.returned = b.deposited - b.paid;
        if (banned(b.payer.addr)) {
            world.claimable += b.returned;
            heldFor[b.world][b.payer.addr] += b.returned;
        } else {
            world.returned += b.returned;
        }
    }

    /// @dev The channel as the escrow has it is the channel as the books have it.
    function verify(bytes32 channelId) public {
        Book storage b = books[channelId];
        ISessionEscrow.Channel memory c = worlds[b.world].escrow.getChannel(channelId);
        bool same = c.deposit == b.deposited && c.settled == b.paid && c.finalized == b.finalized
            && c.closeRequestedAt == b.closeRequestedAt && c.payer == b.payer.addr
            && c.payee == b.payee.addr
            && c.authorizedSigner == (b.hasSigner ? b.signer.addr : address(0));
        if (!same || c.settled > c.deposit || c.settled > b.greatestSigned) ++astray;
        if (askedAt[channelId] != 0 && c.closeRequestedAt != askedAt[channelId]) ++exitsTaken;
        askedAt[channelId] = c.closeRequestedAt;
    }

    function must(bytes memory call) private {
        (bool success, bytes memory answer) = address(escrow).call(call);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    function mustNot(bytes memory call) private {
        (bool success,) = address(escrow).call(call);
        if (success) ++broken;
    }
}

// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Test} from "forge-std/Test.sol";

import {IEscrowFactory} from "../src/interfaces/IEscrowFactory.sol";
import {ISessionEscrow} from "../src/interfaces/ISessionEscrow.sol";
import {IDevUSD} from "./IDevUSD.sol";

/// @dev The world every test starts in, and the signatures of its people. The contracts under test
/// are the committed artifacts, byte for byte what is deployed. Digests are built here from the
/// draft's type strings and never asked of the contract.
abstract contract Base is Test {
    struct Person {
        address addr;
        uint256 key;
    }

    /// @dev A signed EIP-3009 authorization.
    struct Authorization {
        address from;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
        bytes signature;
    }

    /// @dev A signed Permit2 transfer.
    struct Permit {
        address from;
        uint256 nonce;
        uint256 deadline;
        bytes signature;
    }

    address internal constant PERMIT2 = 0x000000000022D473030F116dDEE9F6B43aC78BA3;
    address private constant CREATE2 = 0x4e59b44847b379578588920cA78FbF26c0B4956C;
    bytes32 private constant PERMIT2_SALT = bytes32(uint256(0xd3af2663da51c10215000000));
    uint128 internal constant DEPOSIT = 10_000_000;
    uint256 internal constant PLENTY = 1e30;
    uint256 internal constant GRACE = 15 minutes;

    IDevUSD internal token;
    ISessionEscrow internal escrow;
    IEscrowFactory internal factory;
    Person internal payer;
    Person internal payee;
    Person internal stranger;
    Person internal signer;

    function setUp() public virtual {
        vm.warp(1_750_000_000);
        (bool deployed,) =
            CREATE2.call(abi.encodePacked(PERMIT2_SALT, vm.envBytes("PERMIT2_INIT_CODE")));
        require(deployed && PERMIT2.code.length != 0, "Permit2 is not what it should be");
        token = IDevUSD(deploy("DevUSD", abi.encode(address(this))));
        factory = IEscrowFactory(deploy("EscrowFactory", ""));
        escrow = ISessionEscrow(factory.createEscrow(address(token)));
        payer = person("payer");
        payee = person("payee");
        stranger = person("stranger");
        signer = person("signer");
    }

    function deploy(string memory name, bytes memory arguments) internal returns (address place) {
        string memory path = string.concat("../settlement/artifacts/", name, ".json");
        bytes memory code = vm.parseJsonBytes(vm.readFile(path), ".bytecode");
        code = bytes.concat(code, arguments);
        assembly ("memory-safe") {
            place := create(0, add(code, 0x20), mload(code))
        }
        require(place != address(0), name);
    }

    /// @dev Somebody with a key, tokens, and approvals for escrow and Permit2.
    function person(string memory name) internal returns (Person memory made) {
        (made.addr, made.key) = makeAddrAndKey(name);
        token.mint(made.addr, PLENTY);
        vm.startPrank(made.addr);
        token.approve(address(escrow), type(uint256).max);
        token.approve(PERMIT2, type(uint256).max);
        vm.stopPrank();
    }

    /*//////////////////////////////////////////////////////////////////////////
                                     CHANNELS
    //////////////////////////////////////////////////////////////////////////*/

    function open() internal returns (bytes32) {
        return open(bytes32(0), address(0));
    }

    function open(bytes32 salt, address signer_) internal returns (bytes32) {
        return openBy(payer.addr, salt, signer_);
    }

    function openBy(address payer_, bytes32 salt, address signer_) internal returns (bytes32) {
        vm.prank(payer_);
        return escrow.open(payee.addr, address(token), DEPOSIT, salt, signer_);
    }

    function finalizedChannel() internal returns (bytes32 channelId) {
        channelId = open("finalized", address(0));
        vm.prank(payee.addr);
        escrow.close(channelId, 0, "");
    }

    function idOf(address payer_, address payee_, bytes32 salt, address signer_)
        internal
        view
        returns (bytes32)
    {
        return keccak256(
            abi.encode(
                payer_, payee_, address(token), salt, signer_, address(escrow), block.chainid
            )
        );
    }

    function settleAs(Person memory who, bytes32 channelId, uint128 amount) internal {
        bytes memory signature = voucher(payer, channelId, amount);
        vm.prank(who.addr);
        escrow.settle(channelId, amount, signature);
    }

    function requestClose(bytes32 channelId) internal {
        vm.prank(payer.addr);
        escrow.requestClose(channelId);
    }

    function entry(Person memory by, bytes32 channelId, uint128 amount)
        internal
        view
        returns (ISessionEscrow.BatchEntry memory)
    {
        return ISessionEscrow.BatchEntry(channelId, amount, voucher(by, channelId, amount));
    }

    function one(ISessionEscrow.BatchEntry memory only)
        internal
        pure
        returns (ISessionEscrow.BatchEntry[] memory entries)
    {
        entries = new ISessionEscrow.BatchEntry[](1);
        entries[0] = only;
    }

    /*//////////////////////////////////////////////////////////////////////////
                                    SIGNATURES
    //////////////////////////////////////////////////////////////////////////*/

    function sign(Person memory by, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(by.key, digest);
        return abi.encodePacked(r, s, v);
    }

    function domain(uint256 chainId, address place) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256(
                    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
                ),
                keccak256("EVM Payment Channel"),
                keccak256("1"),
                chainId,
                place
            )
        );
    }

    function typed(bytes32 separator, bytes32 structHash) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", separator, structHash));
    }

    function typed(bytes32 structHash) internal view returns (bytes32) {
        return typed(domain(block.chainid, address(escrow)), structHash);
    }

    function voucherHash(bytes32 channelId, uint128 amount) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("Voucher(bytes32 channelId,uint128 cumulativeAmount)"), channelId, amount
            )
        );
    }

    function voucher(Person memory by, bytes32 channelId, uint128 amount)
        internal
        view
        returns (bytes memory)
    {
        return sign(by, typed(voucherHash(channelId, amount)));
    }

    /// @dev Payee's signature for `kind` "Settle" or "Close".
    function authorize(
        Person memory by,
        string memory kind,
        bytes32 channelId,
        uint128 amount,
        uint256 nonce,
        uint256 deadline
    ) internal view returns (bytes memory) {
        bytes32 typehash = keccak256(
            bytes.concat(
                bytes(kind),
                "Authorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
            )
        );
        return sign(by, typed(keccak256(abi.encode(typehash, channelId, amount, nonce, deadline))));
    }

    /// @dev Payee's signature for a batch, `kind` "Settle" or "Close".
    function authorizeBatch(
        Person memory by,
        string memory kind,
        address payee_,
        ISessionEscrow.BatchEntry[] memory entries,
        uint256 nonce,
        uint256 deadline
    ) internal view returns (bytes memory) {
        bytes memory hashes;
        for (uint256 i = 0; i < entries.length; ++i) {
            bytes32 entryHash = keccak256(
                abi.encode(
                    keccak256(
                        "BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
                    ),
                    entries[i].channelId,
                    entries[i].cumulativeAmount,
                    keccak256(entries[i].signature)
                )
            );
            hashes = bytes.concat(hashes, entryHash);
        }
        bytes32 typehash = keccak256(
            bytes.concat(
                bytes(kind),
                "BatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
            )
        );
        return sign(
            by, typed(keccak256(abi.encode(typehash, payee_, keccak256(hashes), nonce, deadline)))
        );
    }

    function authorization(Person memory by, uint256 value, bytes32 nonce)
        internal
        view
        returns (Authorization memory)
    {
        return authorization(by, value, nonce, 0, block.timestamp + 1 hours);
    }

    function authorization(
        Person memory by,
        uint256 value,
        bytes32 nonce,
        uint256 validAfter,
        uint256 validBefore
    ) internal view returns (Authorization memory) {
        bytes32 structHash = keccak256(
            abi.encode(
                token.RECEIVE_WITH_AUTHORIZATION_TYPEHASH(),
                by.addr,
                address(escrow),
                value,
                validAfter,
                validBefore,
                nonce
            )
        );
        bytes memory signature = sign(by, typed(token.DOMAIN_SEPARATOR(), structHash));
        return Authorization(by.addr, validAfter, validBefore, nonce, signature);
    }

    function openNonce(address from, address payee_, bytes32 salt, address signer_)
        internal
        view
        returns (bytes32)
    {
        return keccak256(abi.encode(from, payee_, address(token), salt, signer_));
    }

    function topUpNonce(bytes32 channelId, uint128 amount, address from, bytes32 salt)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(channelId, amount, from, salt));
    }

    function openPermit(
        Person memory by,
        uint256 amount,
        address payee_,
        bytes32 salt,
        address signer_,
        uint256 nonce
    ) internal view returns (Permit memory) {
        bytes32 witness = keccak256(
            abi.encode(
                keccak256(
                    "ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)"
                ),
                payee_,
                salt,
                signer_
            )
        );
        return permit(
            by,
            amount,
            nonce,
            witness,
            "ChannelOpenWitness witness)ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)TokenPermissions(address token,uint256 amount)"
        );
    }

    function topUpPermit(Person memory by, uint256 amount, bytes32 channelId, uint256 nonce)
        internal
        view
        returns (Permit memory)
    {
        bytes32 witness =
            keccak256(abi.encode(keccak256("ChannelTopUpWitness(bytes32 channelId)"), channelId));
        return permit(
            by,
            amount,
            nonce,
            witness,
            "ChannelTopUpWitness witness)ChannelTopUpWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)"
        );
    }

    function permit(
        Person memory by,
        uint256 amount,
        uint256 nonce,
        bytes32 witness,
        string memory witnessType
    ) internal view returns (Permit memory made) {
        made = Permit(by.addr, nonce, block.timestamp + 1 hours, "");
        bytes32 permissions = keccak256(
            abi.encode(
                keccak256("TokenPermissions(address token,uint256 amount)"), address(token), amount
            )
        );
        bytes32 typehash = keccak256(
            bytes.concat(
                "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,",
                bytes(witnessType)
            )
        );
        bytes32 structHash = keccak256(
            abi.encode(typehash, permissions, address(escrow), nonce, made.deadline, witness)
        );
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"),
                keccak256("Permit2"),
                block.chainid,
                PERMIT2
            )
        );
        made.signature = sign(by, typed(separator, structHash));
    }
}

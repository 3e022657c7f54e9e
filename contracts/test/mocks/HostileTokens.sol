// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @dev Keeps one percent of every transfer.
contract FeeToken is ERC20("Fee", "FEE") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(to, address(0), value / 100);
    }
}

/// @dev Moves nothing for chosen parties and says so by returning false.
contract FalseToken is ERC20("False", "FALSE") {
    mapping(address account => bool) public refused;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function refuse(address account, bool on) external {
        refused[account] = on;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        return refused[to] ? false : super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        return refused[from] ? false : super.transferFrom(from, to, value);
    }
}

/// @dev As old tokens do: returns nothing at all.
contract SilentToken {
    mapping(address account => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev Reverts for, or burns all gas of, transfers to chosen accounts; can answer garbage.
contract PickyToken is ERC20("Picky", "PICKY") {
    enum Mode {
        Normal,
        Revert,
        BurnGas,
        Garbage,
        Bomb
    }

    mapping(address account => Mode) public modes;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function setMode(address account, Mode mode) external {
        modes[account] = mode;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        Mode mode = modes[to];
        if (mode == Mode.Revert) revert("refused");
        if (mode == Mode.BurnGas) {
            while (true) {}
        }
        if (mode == Mode.Garbage) {
            assembly ("memory-safe") {
                mstore(0, 2)
                return(0, 32)
            }
        }
        if (mode == Mode.Bomb) {
            assembly ("memory-safe") {
                revert(0, 100000)
            }
        }
        return super.transfer(to, value);
    }
}

/// @dev Calls back before and after it moves money, as tokens with hooks do.
contract HookToken is ERC20("Hook", "HOOK") {
    address public target;
    bytes public payload;
    bool public tried;
    bool public succeeded;
    bytes public answer;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function arm(address target_, bytes calldata payload_) external {
        (target, payload, tried, succeeded) = (target_, payload_, false, false);
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        _transfer(from, to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target == address(0) || tried) return;
        tried = true;
        (succeeded, answer) = target.call(payload);
    }
}

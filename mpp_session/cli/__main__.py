"""`python -m mpp_session.cli` is `mpp-session`, for programs that start it with this Python."""

from mpp_session.cli.app import main

if __name__ == "__main__":
    main()

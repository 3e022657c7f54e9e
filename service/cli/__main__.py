"""`python -m service.cli` is `mpp-session`, for programs that start it with their own Python."""

from service.cli.app import main

if __name__ == "__main__":
    main()

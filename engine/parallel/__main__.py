"""`python -m engine.parallel`: a rank beside the first, started by it."""

from engine.parallel.rank import main

if __name__ == "__main__":
    main()

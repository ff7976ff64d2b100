"""python -m gateway: the same as the command headrace."""

from gateway.cli import main

main()

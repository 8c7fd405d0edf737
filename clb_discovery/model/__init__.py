"""The terms that every package uses: addresses, virtual and real servers, services, answers."""

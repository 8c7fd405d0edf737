"""The terms that every room uses: addresses, virtual and real servers, services, answers."""

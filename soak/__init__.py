"""`make soak`: the whole product under everything that goes wrong at once, and whoever checks that nothing is lost.

`world` is what there is: Consul, DNS, real servers; `traffic` the clients; `actors` what changes and what goes wrong;
`history` what was done when; `judge` and `leaks` what has to hold.
"""

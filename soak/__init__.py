"""`make soak`: the whole product under all failures at once, with checks that nothing is lost.

`world` is the environment: Consul, DNS, real servers; `traffic` the clients; `actors` the changes and failures;
`history` the record of them; `judge` and `leaks` the conditions.
"""

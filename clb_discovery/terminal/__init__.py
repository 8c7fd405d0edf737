"""What people see of `status`, `plan` and `check`, by rich, which is imported for these commands alone.

Names and messages are untrusted text: they become `rich.text.Text` through `screen.plain`, and never markup.
"""

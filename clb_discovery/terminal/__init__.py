"""The output of `status`, `plan` and `check` for people. Only these commands import rich.

Names and messages are untrusted text. They become `rich.text.Text` through `screen.plain`, and never markup.
"""

"""Payment methods: what differs between one kind of session and another, behind one interface.

`interface` defines what a method is, and `registry` lists the methods. Each method is a package
here. Nothing outside this package knows one of them (decision record 13).
"""

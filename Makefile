# The same commands under the names make users look for; each one is a script of its own.
commands := setup test demo format lock compile gas deploy bench

.PHONY: $(commands)
$(commands):
	@scripts/$@ $(args)

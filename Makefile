# The same commands under the names make users look for; each one is a script of its own.
# Arguments go in `args`: make soak args="--minutes 30"
commands := bench check compile demo deploy detection docs forge format gas lock mutants release requirements screenshots setup \
	slither soak test wheel

.PHONY: $(commands)
$(commands):
	@scripts/$@ $(args)

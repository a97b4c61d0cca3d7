# The engine behind a pipe, for the tests with a scripted peer.
DRIVER := $(BUILD)/tests/fake/driver

$(DRIVER): $(patsubst %.c,$(OBJ)/%.o,$(wildcard tests/fake/driver/*.c)) $(CORE)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(LIBRARIES)

test-programs: $(DRIVER)

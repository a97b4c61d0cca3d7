# Preloaded into clusters whose processes are to stand still at a chosen moment.
STANDSTILL := $(BUILD)/tests/pg/standstill.so

$(STANDSTILL): tests/pg/preload/standstill.c
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O2 -g $(WARNINGS) -fPIC -shared -o $@ $< -ldl

test-programs: $(STANDSTILL)

# The simulation: engine, servers, network and clocks in one process. `make sim SEEDS=n` runs schedules, `make sim-planted`
# shows that planted bugs are found. The engine and the server are compiled again here, with the planted bugs in them.
SIM_BUILD := $(BUILD)/sim
SIM_SOURCES := $(filter-out core/transport.c core/resolve.c core/tls.c core/tlsfiles.c core/wait.c,$(wildcard core/*.c)) \
	$(addprefix server/,locktable.c lockparts.c hash.c session.c command.c stats.c peer.c fence.c) $(wildcard tests/sim/*.c)
SIM_OBJS := $(patsubst %.c,$(SIM_BUILD)/%.o,$(SIM_SOURCES))
SIM := $(SIM_BUILD)/sim
SIM_WRAP := $(foreach f,malloc calloc realloc free strdup,-Wl,--wrap=$(f))
SEEDS ?= 20000

$(SIM_BUILD)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -DDFL_PLANT -Iserver -MMD -MP -c -o $@ $<

$(SIM): $(SIM_OBJS)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) $(SIM_WRAP) -o $@ $^ -lcrypto -lz -lm

-include $(SIM_OBJS:.o=.d)

.PHONY: sim sim-planted
sim: $(SIM)  ### random schedules of broken networks and servers; SEEDS= how many, SEED= one of them with its trace
	$(if $(SEED),$(SIM) --seed $(SEED) --trace,$(SIM) --seeds $(SEEDS))

sim-planted: $(SIM)
	tests/sim/planted $(SIM)

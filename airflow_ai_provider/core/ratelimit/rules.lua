-- The desk's rules on Redis: rules.py and the modules it is made of, word for word, in one atomic step.
-- tests/unit/core/ratelimit/test_ratelimit_rules.py holds the two against each other.
--
-- KEYS[1]  the state of one deployment, packed
-- ARGV[1]  the ask, ARGV[2] the terms, both JSON; constants are those of the Python modules
-- returns  JSON: the grant. "now" is seconds on Redis' clock as text; all other moments are seconds from now.

local HORIZON, BURST, HUNGRY, CREDIT = 0.1, 0.02, 0.5, 1.0                        -- permits.py
local LEASE, TURN, NO_SHARE = 10.0, 5.0, 1e-6                                     -- rules.py
local DOWN_ON_LIMIT, DOWN_ON_LATENCY, TOLERANCE, SHORT, LONG, WARM = 0.7, 0.9, 2.0, 20, 500, 50  -- rules.py
local START, LEAST, STEP, ROUND, MEMORY, FEW = 0.998, 0.01, 0.005, 1.0, 2.0, 10.0  -- caution.py
local NARROW, GROWTH, CATCH_UP, MOST_CUT = 30.0, 0.02, 0.5, 0.5                   -- caution.py
local SEVERAL, CATCH_UP_CUT, CATCH_UP_BACK = 2.5, 0.1, 300.0                      -- caution.py
local FIRST_PROBE = 1.0                                                           -- feedback.py
local SETTLE, LONG_COOL = 0.5, 10.0                                               -- rules.py
local KEPT = 3600                                                                 -- seconds after the last ask

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local ask, terms = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local state

-- permits.py

local function schedule_of(limit)
  local schedule = state.schedules[limit] or {ahead = 0, lines = {}}
  state.schedules[limit] = schedule
  return schedule
end

local function line_of(schedule)
  local line = schedule.lines[ask.team] or {till = 0, credit = 0, hungry_till = 0}
  schedule.lines[ask.team] = line
  return line
end

local function give_back(limit, units)
  local line = line_of(schedule_of(limit))
  line.credit = math.min(line.credit + units, terms.rates[limit] * terms.shares[ask.team] * CREDIT)
end

local function reserve(limit, wanted, first, workers, earliest)
  local schedule, share = schedule_of(limit), terms.shares[ask.team]
  local rate = terms.rates[limit] * state.caution.share
  local line, busy = line_of(schedule), 0
  for team, other in pairs(schedule.lines) do
    if team ~= ask.team and math.max(other.till, other.hungry_till) > now then
      busy = busy + (terms.shares[team] or 0)
    end
  end
  local pace = (share + busy) / share / rate
  local units = math.min(wanted, math.max(first, math.floor(HORIZON / pace / workers)))
  local pull = math.min(line.credit, units)
  local due = units - pull
  local back = line.hungry_till > now and math.max(BURST, state.caution.catch_up) or BURST
  local lead = now - math.max(back, first / rate)
  local slack = busy > 0 and HORIZON or 0
  local start = math.max(line.till, schedule.ahead - slack, now - math.max(back, first * pace), earliest)
  schedule.ahead = math.max(schedule.ahead, lead, earliest) + due / rate
  line.credit = line.credit - pull
  line.hungry_till = wanted > units and now + HUNGRY or 0
  line.till = start + due * pace
  return {start - now, due * pace / units, units}
end

-- rules.py

local function forget_dead()
  for name, worker in pairs(state.workers) do
    if worker.seen < now - LEASE then state.workers[name] = nil end
  end
end

local function fair_shares(left, names, weights)
  local weight, fair = 0, {}
  for _, name in ipairs(names) do weight = weight + weights[name] end
  table.sort(names, function(a, b)
    local x, y = state.workers[a].want / weights[a], state.workers[b].want / weights[b]
    if x ~= y then return x < y end
    return a < b
  end)
  for _, name in ipairs(names) do
    fair[name] = math.min(state.workers[name].want, left * weights[name] / weight)
    left = left - fair[name]
    weight = weight - weights[name]
  end
  return fair
end

local function split(limit)
  local names, sizes, weights = {}, {}, {}
  for name, worker in pairs(state.workers) do
    if worker.want > 0 then
      names[#names + 1] = name
      sizes[worker.team] = (sizes[worker.team] or 0) + 1
    end
  end
  if #names == 0 then return {} end
  for _, name in ipairs(names) do
    local team = state.workers[name].team
    weights[name] = (terms.shares[team] or NO_SHARE) / sizes[team]
  end
  local fair = fair_shares(limit, names, weights)
  table.sort(names)
  local first, whole, total, given = math.floor(now / TURN) % #names, {}, 0, 0
  for index = 0, #names - 1 do
    local name = names[(first + index) % #names + 1]
    total = total + fair[name]
    whole[name] = math.floor(total + 1e-6) - given
    given = given + whole[name]
  end
  return whole
end

local function slots_for()
  forget_dead()
  if ask.leaving then
    state.workers[ask.worker] = nil
    return 0
  end
  local me = state.workers[ask.worker] or {team = ask.team, slots = 0}
  state.workers[ask.worker] = me
  me.seen, me.want = now, ask.want
  local limit = state.testing and 1 or terms.adaptive and math.floor(state.adaptive.limit) or terms.concurrency
  local of_others = -me.slots
  for _, worker in pairs(state.workers) do of_others = of_others + worker.slots end
  local granted = 0
  if now >= state.hold_until then
    granted = math.max(0, math.min(split(limit)[ask.worker] or 0, limit - of_others))
  end
  me.slots = math.max(granted, ask.in_use)
  return granted
end

-- rules.py

local function average(old, seconds, answers, span)
  if old == 0 then return seconds end
  return seconds + (old - seconds) * math.exp(-answers / span)
end

local function adapt(it)
  if ask.ok > 0 then
    it.answers = it.answers + ask.ok
    it.short = average(it.short, ask.seconds, ask.ok, SHORT)
    it.long = average(it.long, ask.seconds, ask.ok, LONG)
  end
  local slow = ask.ok > 0 and it.answers > WARM and it.short > TOLERANCE * it.long
  if ask.limited > 0 or slow then
    if now >= it.next_cut then
      it.limit = math.max(1, it.limit * (ask.limited > 0 and DOWN_ON_LIMIT or DOWN_ON_LATENCY))
      it.next_cut = now + math.max(it.short, 0.5)
    end
  elseif ask.ok > 0 then
    it.limit = math.min(terms.concurrency, it.limit + ask.ok / it.limit)
  end
end

-- caution.py

local function adjust(it)
  local passed = it.seen > 0 and math.min(math.max(0, now - it.seen), 60) or 0
  local fade = math.exp(-passed / MEMORY)
  it.ok, it.limited = it.ok * fade + ask.ok, it.limited * fade + ask.limited
  it.late, it.seen = it.late * fade + ask.late, now
  it.share = it.share + math.min((1 - it.share) * passed / NARROW, it.share * GROWTH * passed, 1 - it.share)
  it.catch_up = math.min(CATCH_UP, it.catch_up + passed * CATCH_UP / CATCH_UP_BACK)
  if it.late >= SEVERAL then
    it.catch_up = it.catch_up * CATCH_UP_CUT
    it.limited, it.late = it.limited - it.late, 0
  elseif ask.limited > 0 and now >= it.next_cut then
    local refused = it.limited / (FEW + it.ok + it.limited)
    it.share = math.max(LEAST, it.share * (1 - math.min(MOST_CUT, math.max(STEP, refused))))
    it.ok, it.limited, it.next_cut = 0, 0, now + ROUND
  end
end

-- feedback.py

local function open(circuit, reason)
  circuit.probes = circuit.state == 'half_open' and circuit.probes + 1 or 0
  circuit.state, circuit.reason, circuit.prober = 'open', reason, ''
  circuit.probe_at = now + math.min(FIRST_PROBE * 2 ^ circuit.probes, terms.breaker.probe_every)
end

local function judge(circuit)
  if circuit.state ~= 'closed' or (ask.ok == 0 and ask.failed == 0) then return end
  circuit.streak = ask.ok > 0 and ask.streak or circuit.streak + ask.streak
  local fade = math.exp(-(now - circuit.counted) / terms.breaker.window)
  circuit.good, circuit.bad = circuit.good * fade + ask.ok, circuit.bad * fade + ask.failed
  circuit.counted = now
  local calls = circuit.good + circuit.bad
  if circuit.streak >= terms.breaker.failures then
    open(circuit, string.format('%d failures in a row', circuit.streak))
  elseif ask.failed > 0 and calls >= terms.breaker.calls and circuit.bad / calls >= terms.breaker.failure_rate then
    open(circuit, string.format('%.0f%% of %.0f calls failed', 100 * circuit.bad / calls, calls))
  end
end

local function probe(circuit)
  if circuit.state == 'closed' then return false end
  if ask.probe == 'ok' then
    circuit.state, circuit.reason, circuit.prober = 'closed', 'the probe was answered', ''
    circuit.streak, circuit.good, circuit.bad = 0, 0, 0
  elseif ask.probe == 'failed' and circuit.prober == ask.worker then
    open(circuit, 'the probe failed')
  elseif ask.probe == 'free' and circuit.prober == ask.worker then
    circuit.state, circuit.prober, circuit.probe_at, circuit.reason = 'open', '', now, 'the probe was not sent'
  elseif ask.probe == 'want' and now >= math.max(circuit.probe_at, state.cool_until) then
    circuit.state, circuit.prober, circuit.reason = 'half_open', ask.worker, 'time for a probe'
    circuit.probe_at = now + terms.breaker.probe_every
    return true
  end
  return false
end

-- rules.py

local function new_caution()
  return {share = START, catch_up = CATCH_UP, ok = 0, limited = 0, late = 0, seen = 0, next_cut = 0}
end

local function new_state()
  return {
    epoch = string.format('%.6f', now), hold_until = 0, cool_until = 0, testing = false, schedules = {}, workers = {},
    caution = new_caution(),
    adaptive = {limit = terms.concurrency, short = 0, long = 0, answers = 0, next_cut = 0},
    circuit = {state = 'closed', streak = 0, good = 0, bad = 0, counted = 0, probes = 0, probe_at = 0, prober = '',
               reason = ''},
  }
end

local function permits()
  local mates, granted = 0, {}
  for _, worker in pairs(state.workers) do
    if worker.want > 0 and worker.team == ask.team then mates = mates + 1 end
  end
  for limit, wanted in pairs(ask.units) do
    if wanted[1] > 0 then
      granted[limit] = reserve(limit, wanted[1], wanted[2], math.max(1, mates), state.cool_until)
    end
  end
  return granted
end

local function fraction()
  local teams, mates, total = {[ask.team] = true}, 0, 0
  for _, worker in pairs(state.workers) do
    teams[worker.team] = true
    if worker.team == ask.team then mates = mates + 1 end
  end
  for team in pairs(teams) do total = total + (terms.shares[team] or 0) end
  return terms.shares[ask.team] / total / math.max(1, mates)
end

local function serve()
  if ask.epoch ~= '' and ask.epoch ~= state.epoch then
    state.hold_until = math.max(state.hold_until, now + SETTLE)
    for limit, units in pairs(ask.back) do ask.back[limit] = math.min(units, 0) end
  end
  if ask.cool > 0 then
    state.cool_until = math.max(state.cool_until, now + ask.cool)
    state.testing = state.testing or ask.cool >= LONG_COOL
  elseif ask.ok > 0 and now >= state.cool_until then
    state.testing = false
  end
  if terms.adaptive then
    adapt(state.adaptive)
  else
    adjust(state.caution)
  end
  local circuit = state.circuit
  local before = circuit.state
  judge(circuit)
  local may_probe = probe(circuit)
  for limit, units in pairs(ask.back) do give_back(limit, units) end
  local slots = slots_for()
  return {
    now = string.format('%.6f', now), epoch = state.epoch, slots = slots,
    permits = circuit.state == 'closed' and now >= state.hold_until and permits() or {},
    cool = state.cool_until - now, circuit = circuit.state, changed = circuit.state ~= before,
    reason = circuit.reason, probe = may_probe, probe_in = circuit.probe_at - now, fraction = fraction(),
    catch_up = state.caution.catch_up,
  }
end

local packed = redis.call('GET', KEYS[1])
state = packed and cmsgpack.unpack(packed) or new_state()
state.caution = state.caution or new_caution()  -- an earlier version kept none
local grant = serve()
redis.call('SET', KEYS[1], cmsgpack.pack(state), 'EX', KEPT + math.ceil(math.max(0, state.cool_until - now)))
return cjson.encode(grant)

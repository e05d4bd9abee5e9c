-- Whether live processes hold leases of keys, and what is stored.
-- KEYS: n leases, n answers. ARGV: prefix of owners.
local n = #KEYS / 2
local leased = {}
for i = 1, n do
  local holder = redis.call('GET', KEYS[i])
  leased[i] = (holder and redis.call('EXISTS', ARGV[1] .. holder)) or 0
end
return {leased, redis.call('MGET', unpack(KEYS, n + 1))}

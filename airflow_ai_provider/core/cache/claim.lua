-- Lease keys that no live process has leased, and read what is stored.
-- KEYS: the owner's sign of life, n leases, n answers. ARGV: owner, its ms to live, s to remember a lease, prefix of owners.
redis.call('SET', KEYS[1], 1, 'PX', ARGV[2])
local n = (#KEYS - 1) / 2
local others = {}
for i = 1, n do
  local holder = redis.call('GET', KEYS[i + 1])
  if holder and holder ~= ARGV[1] and redis.call('EXISTS', ARGV[4] .. holder) == 1 then
    others[i] = 1
  else
    redis.call('SET', KEYS[i + 1], ARGV[1], 'EX', ARGV[3])
    others[i] = 0
  end
end
return {others, redis.call('MGET', unpack(KEYS, n + 2))}

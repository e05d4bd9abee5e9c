-- Keep answers and give up leases, each only if it is still the owner's.
-- KEYS: n leases, m <= n answers. ARGV: owner, n, then value and s to live of each answer.
local n = tonumber(ARGV[2])
for i = n + 1, #KEYS do
  local at = 3 + 2 * (i - n - 1)
  redis.call('SET', KEYS[i], ARGV[at], 'EX', ARGV[at + 1])
end
for i = 1, n do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    redis.call('DEL', KEYS[i])
  end
end

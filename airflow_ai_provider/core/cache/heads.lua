-- The headings of answers and their sizes; nothing for what is none. KEYS: answers. ARGV: bytes before the team.
local found = {}
for i = 1, #KEYS do
  local least = tonumber(ARGV[1])
  local size = redis.pcall('STRLEN', KEYS[i])
  if type(size) == 'number' then
    local head = redis.call('GETRANGE', KEYS[i], 0, least - 1)
    if #head == least then
      local team = string.byte(head, least - 1) * 256 + string.byte(head, least)
      head = redis.call('GETRANGE', KEYS[i], 0, least + team - 1)
    end
    found[i] = {head, size}
  else
    found[i] = {'', 0}
  end
end
return found
